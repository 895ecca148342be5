"""The largest 32-bit float matrix of a safetensors file, written raw and in shuffled order: raw_features.py FILE OUT. Prints
its columns. Shuffled, because photos of one object lie together, and the last rows become the queries."""
import json
import sys

import numpy as np

path, out = sys.argv[1:]
data = open(path, "rb").read()
length = int.from_bytes(data[:8], "little")
header = json.loads(data[8 : 8 + length])
tensors = [t for name, t in header.items() if name != "__metadata__" and t["dtype"] == "F32" and len(t["shape"]) == 2]
largest = max(tensors, key=lambda t: t["shape"][0] * t["shape"][1])
start, end = (8 + length + offset for offset in largest["data_offsets"])
matrix = np.frombuffer(data[start:end], dtype="<f4").reshape(largest["shape"])
matrix[np.random.default_rng(1).permutation(len(matrix))].tofile(out)
print(matrix.shape[1])
