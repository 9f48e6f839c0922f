"""The parent's side: starts workers, watches them, replaces them, and gives every request exactly one answer."""
