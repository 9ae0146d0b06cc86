"""The commands: each reads its options, calls one function, prints what it got."""
