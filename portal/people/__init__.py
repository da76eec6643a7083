"""Who may sign in: the owner's set-up, passwords, sessions, throttling."""
