"""The child: reads, dispatches, answers. Nothing of the parent's side, and no guard, is imported here."""
