"""Names of data sets, separate from their loaders so that the command line lists them without PyTorch."""

NAMED = ("digits", "fashion-mnist", "cifar10")
PREFIXED = ("imagefolder:DIR", "parquet:FILE", "hub:NAME")
