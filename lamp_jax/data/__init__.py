"""LaMP files, in and out."""
