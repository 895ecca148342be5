"""Faiss beside `glimpse-gallery bench`: reads one JSON command a line, answers with one JSON line.

Commands: {"do": "load", "features": FILE, "queries": FILE, "dimension": D}
          {"do": "build", "factory": NAME, "candidates": N, "probes": N or null}
          {"do": "batch", "k": K}    all queries in one call
          {"do": "single", "k": K, "count": N}    the first N one by one
          {"do": "train", "sub_spaces": M, "bits": B, "points": N, "iterations": N}    a quantizer alone, and its error
"""
import json
import sys
import time

import faiss
import numpy as np


def ids_of(result):
    return result[1].tolist()


def answer(state, command):
    do = command["do"]
    if do == "load":
        d = command["dimension"]
        state["x"] = np.fromfile(command["features"], dtype="<f4").reshape(-1, d)
        state["q"] = np.fromfile(command["queries"], dtype="<f4").reshape(-1, d)
        return {"version": faiss.__version__, "options": faiss.get_compile_options()}
    if do == "build":
        x = state["x"]
        # Unit vectors: the nearest by L2 are the nearest by cosine.
        index = faiss.index_factory(x.shape[1], command["factory"], faiss.METRIC_L2)
        if state.get("factory") == command["factory"]:
            index = state["index"]
        else:
            state.pop("index", None)
            started = time.perf_counter()
            index.train(x)
            index.add(x)
            state["seconds"] = time.perf_counter() - started
        if command["candidates"]:
            index.k_factor = command["candidates"] / command["k"]
        if command["probes"]:
            faiss.extract_index_ivf(index).nprobe = command["probes"]
        state["factory"], state["index"] = command["factory"], index
        return {"seconds": state["seconds"]}
    if do == "batch":
        started = time.perf_counter()
        found = state["index"].search(state["q"], command["k"])
        return {"seconds": time.perf_counter() - started, "ids": ids_of(found)}
    if do == "single":
        index, q, k = state["index"], state["q"], command["k"]
        seconds = []
        for i in range(command["count"]):
            started = time.perf_counter()
            index.search(q[i : i + 1], k)
            seconds.append(time.perf_counter() - started)
        return {"each": seconds}
    if do == "train":
        x = state["x"]
        pq = faiss.ProductQuantizer(x.shape[1], command["sub_spaces"], command["bits"])
        pq.cp.niter = command["iterations"]
        pq.cp.max_points_per_centroid = command["points"]
        started = time.perf_counter()
        pq.train(x)
        seconds = time.perf_counter() - started
        sample = x[: command["test"]]
        error = float(((pq.decode(pq.compute_codes(sample)) - sample) ** 2).sum(1).mean())
        return {"seconds": seconds, "error": error}
    raise ValueError(f"no command {do}")


def main():
    faiss.omp_set_num_threads(1)
    state = {}
    for line in sys.stdin:
        print(json.dumps(answer(state, json.loads(line))), flush=True)


main()
