"""Training steps: one pure update function per trained component."""
