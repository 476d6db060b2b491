"""Names of data sets, apart from their loaders: the command line lists them without importing PyTorch."""

NAMED = ("digits", "fashion-mnist", "cifar10")
PREFIXED = ("imagefolder:DIR", "parquet:FILE", "hub:NAME")
