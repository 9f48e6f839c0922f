"""What several processes have in common through Redis, and how that Redis does. Needs the extra ``redis``."""
