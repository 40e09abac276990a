"""Separate rows for the tests of forests and packing."""

from sft_recipes.rows import IGNORED


def row(ids, first, source, **more):
    """A separate row that learns everything from its `first` token on."""
    return {"input_ids": [*ids], "labels": [IGNORED] * first + [*ids[first:]], "source": source, **more}


def random_rows(rng):
    """Conversations that begin alike, some word for word the same, some with rewritten histories; in half of the datasets all share
    a system prompt, which makes cuts pay."""
    weights, rows, system = rng.random() < 0.5, [], [3] * rng.choice([0, 0, 20, 40])
    for number in range(rng.randint(1, 14)):
        known = rng.choice(rows)["input_ids"] if rows and rng.random() < 0.8 else []
        for _ in range(rng.choice([1, 1, 1, 2, 4])):
            ids = known[: rng.randint(0, len(known))] + [rng.randint(1, 2) for _ in range(rng.randint(2, 12))]
            if rng.random() < 0.1 and rows:
                ids = rng.choice(rows)["input_ids"]
            first = rng.randint(0, len(ids) - 1)
            labels = [ids[i] if i == first or (i > first and rng.random() < 0.5) else IGNORED for i in range(len(ids))]
            rows.append({"input_ids": [*ids], "labels": labels, "source": f"a:{number}"})
            known = ids
    for one in rows:
        one.update(input_ids=system + one["input_ids"], labels=[IGNORED] * len(system) + one["labels"])
    if weights:
        for one in rows:
            one["loss_weights"] = [rng.choice([0.25, 1.0, 2.0]) * (label != IGNORED) for label in one["labels"]]
    return rows
