"""Tables that commands show on a terminal."""
