"""Where files come from: a download, mails, users' histories, or nothing but a seed."""
