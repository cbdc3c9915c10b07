"""A run: its settings, its folder, what it saves and reports, and the use of what it trained."""
