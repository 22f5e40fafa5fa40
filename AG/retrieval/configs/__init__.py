"""Every setting with its meaning and its default: frozen dataclasses that need no other library."""
