"""Names of the files in a run folder and in a folder of test images."""

HEADER = "run.json"
CURVES = "curves.jsonl"
SAMPLES = "samples.parquet"
WEIGHTS = "model.safetensors"
LAYOUTS = "layouts.json"
ARRAYS = ("maps", "gates", "rows")
"""The sub-folders of a run, one file per array."""

DATASETS = "datasets"
DATASET_HEADER = "dataset.json"
DATA = "data.safetensors"

SCHEMA = 1
"""The schema of the folders that this version writes."""
