"""What exists only to take over files and code of the existing implementation."""
