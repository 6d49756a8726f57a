"""The embedded demo data: drawn pictures with truth and weak labels."""
