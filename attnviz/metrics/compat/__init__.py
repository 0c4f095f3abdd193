"""Other packages' conventions and interfaces."""
