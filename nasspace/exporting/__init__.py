"""Export of a network to a folder that runs without nasspace, and verification of the folder."""
