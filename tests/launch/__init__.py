"""What the scripts of launch/ do, on machines that are played."""
