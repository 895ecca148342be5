"""Every protocol again, by sorting whole rankings, from its published definition alone.

Reads one JSON object from standard input and writes one. With the argument `pickles FOLDER` it writes ground truth in every
pickle protocol instead.
"""
import json
import pickle
import sys


def ranking(similarities):
    """Row numbers, most similar first; of equals the smaller number."""
    return sorted(range(len(similarities)), key=lambda row: (-similarities[row], row))


def revisited(order, positive, junk):
    """Average precision by the trapezoid rule, and precisions at 1, 5 and 10, walking down the list."""
    positive, junk = set(positive), set(junk)
    seen = old_recall = area = 0
    old_precision, answers = 1.0, []
    for row in order:
        if row in junk:
            continue
        seen += 1
        answers.append(row in positive)
        hits = sum(answers) if answers[-1] else None
        if hits:
            # The official C++ tool of the first Oxford set integrates at every step; steps without recall add nothing.
            recall = hits / len(positive)
            area += (recall - old_recall) * ((hits - 1) / (seen - 1) if seen > 1 else 1.0)
            area += (recall - old_recall) * (hits / seen)
            old_recall = recall
    last = max(place for place, answer in enumerate(answers) if answer) + 1
    precisions = [sum(answers[: min(k, last)]) / min(k, last) for k in (1, 5, 10)]
    return [area / 2] + precisions


def landmarks(order, positive):
    """AP@100 with a running count."""
    hits = total = 0
    for place, row in enumerate(order[:100]):
        if row in positive:
            hits += 1
            total += hits / (place + 1)
    return [total / min(len(positive), 100)]


def recall(order, positive):
    hits = total = 0
    for place, row in enumerate(order):
        if row in positive:
            hits += 1
            total += hits / (place + 1)
    return [total / len(positive)] + [float(any(row in positive for row in order[:k])) for k in (1, 10)]


def means(rows):
    return [sum(column) / len(rows) for column in zip(*rows)]


def main():
    if sys.argv[1:2] == ["pickles"]:
        truth = json.load(sys.stdin)
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
            with open("%s/%d.pkl" % (sys.argv[2], protocol), "wb") as file:
                pickle.dump(truth, file, protocol=protocol)
        return
    case = json.load(sys.stdin)
    orders = [ranking(row) for row in case["similarities"]]
    settings = {"easy": ("easy", ["junk", "hard"]), "medium": ("easy hard", ["junk"]), "hard": ("hard", ["junk", "easy"])}
    out = {}
    for name, (positive, junk) in settings.items():
        rows = []
        for order, truth in zip(orders, case["truth"]):
            positives = [row for key in positive.split() for row in truth[key]]
            if positives:
                rows.append(revisited(order, positives, [row for key in junk for row in truth[key]]))
        out[name] = means(rows)
    answered = [(order, set(truth["easy"])) for order, truth in zip(orders, case["truth"]) if truth["easy"]]
    out["landmarks"] = means([landmarks(*pair) for pair in answered])
    out["recall"] = means([recall(*pair) for pair in answered])
    json.dump(out, sys.stdout)


main()
