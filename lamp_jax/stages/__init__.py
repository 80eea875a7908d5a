"""The programs behind `lamp STAGE`: the only place where host and device meet."""
