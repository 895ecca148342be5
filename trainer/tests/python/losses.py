"""Every loss again, in NumPy and 64 bits, from its definition alone; gradients by central differences.

Reads one JSON object from standard input and writes one: for each loss its value and its gradient in the student.
"""
import json
import sys

import numpy as np

STEP = 1e-5


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def divergence(p, q):
    return float(np.sum(p * (np.log(p) - np.log(q))))


def ssp(student, teacher, anchors, rotation, tau_student, tau_teacher):
    m, _, dsub = anchors.shape
    total = 0.0
    for s, t in zip(student @ rotation.T, teacher @ rotation.T):
        for part in range(m):
            own = slice(part * dsub, (part + 1) * dsub)
            cosines = lambda x: unit(anchors[part]) @ unit(x[own])
            total += divergence(softmax(cosines(t) / tau_teacher), softmax(cosines(s) / tau_student))
    return total / (len(student) * m)


def csd(student, teacher, neighbours, tau_student, tau_teacher):
    total = 0.0
    for s, t in zip(student, teacher):
        nearest = teacher[np.argsort(-(teacher @ t))[:neighbours]]
        total += divergence(softmax(nearest @ t / tau_teacher), softmax(nearest @ s / tau_student))
    return total / len(student)


def squared_cosine_gap(student, teacher):
    return float(np.mean([(1.0 - s @ t) ** 2 for s, t in zip(student, teacher)]))


def raml(student, teacher, asymmetric, symmetric):
    n = len(student)
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    st = np.mean([(student[i] @ teacher[j] - teacher[i] @ teacher[j]) ** 2 for i, j in pairs])
    ss = np.mean([(student[i] @ student[j] - teacher[i] @ teacher[j]) ** 2 for i, j in pairs])
    return squared_cosine_gap(student, teacher) + asymmetric * st + symmetric * ss


def d3still(student, teacher, top, alpha, beta, gamma):
    gaps, wrong_norms, right_norms = [], [], []
    for s, t in zip(student, teacher):
        nearest = teacher[np.argsort(-(teacher @ t))[:top]]
        found, wanted = nearest @ s, nearest @ t
        gaps.append(wanted[0] - found[0])
        wrong, right = [], []
        for i in range(1, top):
            for j in range(1, top):
                f, w = found[i] - found[j], wanted[i] - wanted[j]
                error = (f - w) / (0.1 + abs(w))
                if f * w < 0:
                    wrong.append(error)
                elif f * w > 0:
                    right.append(error)
        wrong_norms.append(np.linalg.norm(wrong))
        right_norms.append(np.linalg.norm(right))
    own = alpha * np.linalg.norm(gaps) / len(student)
    return float(own + (beta * np.mean(wrong_norms) + gamma * np.mean(right_norms)) / (top - 1))


def main():
    problem = json.load(sys.stdin)
    array = lambda name: np.array(problem[name], dtype=np.float64)
    student, teacher, anchors, rotation, bank = map(array, ["student", "teacher", "anchors", "rotation", "bank"])
    identity = np.eye(student.shape[1])
    losses = {
        "ssp": lambda x: ssp(x, teacher, anchors, identity, 0.1, 0.1),
        "ssp rotated": lambda x: ssp(x, teacher, anchors, rotation, 0.2, 0.05),
        "bank": lambda x: ssp(x, teacher, bank[None], identity, 0.1, 0.05),
        "global": lambda x: squared_cosine_gap(x, teacher),
        "reg": lambda x: float(np.mean(np.sum((x - teacher) ** 2, axis=1))),
        "csd": lambda x: csd(x, teacher, 4, 1.0, 0.01),
        "raml": lambda x: raml(x, teacher, 0.7482, 0.6778),
        "d3still": lambda x: d3still(x, teacher, 5, 100.0, 5.0, 1.0),
    }
    answers = {}
    for name, loss in losses.items():
        gradient = np.zeros_like(student)
        for place in np.ndindex(student.shape):
            moved = student.copy()
            moved[place] += STEP
            above = loss(moved)
            moved[place] -= 2 * STEP
            gradient[place] = (above - loss(moved)) / (2 * STEP)
        answers[name] = {"value": loss(student), "gradient": gradient.tolist()}
    json.dump(answers, sys.stdout)


main()
