"""Version of the package, which run records hold."""

VERSION = "0.1.0"
