"""Fake runs of the multiclass VOC experiment, with numbers that can be added up by hand."""

VARIANTS = {
    "x-loss": 0.70,
    "x-loss-equibatch": 0.71,
    "x-loss-equibatch-30k": 0.705,
    "lovasz": 0.73,
    "lovasz-equibatch": 0.735,
    "lovasz-equibatch-30k": 0.75,
    "lovasz-all-classes": 0.66,
    "lovasz-per-image": 0.64,
    "lovasz-per-image-present": 0.68,
}
"""Variant -> final single-scale dataset-mIoU of seed 0; every seed adds 0.002."""
PAPER = tuple(VARIANTS)[:8]
FEATURES = ("x-loss", "lovasz", "lovasz-all-classes", "lovasz-per-image",
            "lovasz-per-image-present", "x-loss-equibatch", "lovasz-equibatch")  # fmt: skip
MULTI, CRF = 0.01, 0.02
"""What multi-scale and CRF add to the single-scale score."""


def curve(start, end, iterations, points=5):
    """A score that rises along a parabola and flattens out: [(step, value)]."""
    fractions = [k / (points - 1) for k in range(points)]
    return [(round(f * iterations), start + (end - start) * (1 - (1 - f) ** 2)) for f in fractions]


def add(store, name, seed=0, *, scale="paper", profile=None, images="photographs", folder="None",
        split="train_aug", batch=10, base=20000, shift=0.0, start=0.03, points=5, regimes=True,
        batches=20, metrics=None, params=None, **kwargs):  # fmt: skip
    """A finished run, as the experiment stores it."""
    iterations = base * 3 // 2 if name.endswith("-30k") else base
    score = VARIANTS.get(name, 0.5) + 0.002 * seed + shift
    given = {
        "data.size": "[321, 321]",
        "data.images": images,
        "data.folder": folder,
        "data.train_split": split,
        "data.equibatch": str("equibatch" in name),
        "training.iterations": str(iterations),
        "model.weights": "deeplab-coco" if images == "photographs" else "basis",
    }
    history = {}
    if split == "train_aug":
        history = {
            "val/dataset_miou": curve(start, score, iterations, points),
            "val/image_miou": curve(start + 0.5, score + 0.1, iterations, points),
            "val/batch_miou": curve(start + 0.1, score - 0.1, iterations, points),
            "val/iou/person": [(iterations, score + 0.05)],
            "val/iou/chair": [(iterations, score - 0.3)],
            "batches/miou": [(k, score - 0.05 + 0.01 * (k % 2)) for k in range(batches)],
            "batches/miou_decision_rule": [(k, score - 0.08) for k in range(batches)],
            "batches/mean_miou": [(iterations, score - 0.045)],
            "batches/mean_miou_decision_rule": [(iterations, score - 0.08)],
        }
        if not batches:
            history = {key: points for key, points in history.items() if "batches/" not in key}
    else:
        history = {"seen/val/dataset_miou": [(iterations, 0.9)]}
    if regimes and split == "train_aug":
        for regime, more in (("multi_scale", MULTI), ("crf", CRF)):
            history[f"val/{regime}/dataset_miou"] = [(iterations, score + more)]
            history[f"val/{regime}/iou/person"] = [(iterations, score + 0.05 + more)]
            history[f"val/{regime}/iou/chair"] = [(iterations, score - 0.3 + more)]
    if regimes:
        given |= {"evaluation.multi_scale.fusion": "max", "evaluation.crf.iterations": "10"}
    else:
        given |= {"evaluation.multi_scale": "None", "evaluation.crf": "None"}
    return store.add(
        "voc-multiclass", name, seed, scale=scale, profile=profile, batch=batch, history=history,
        metrics=metrics, params=given | (params or {}), **kwargs,
    )  # fmt: skip


def add_papers(store, names=PAPER, **kwargs):
    """A run of each of the paper's variants."""
    return [add(store, name, **kwargs) for name in names]


def add_features(store, names=FEATURES, *, seeds=(0, 1), sizes=(2, 5, 10, 20), **kwargs):
    """The study of measures: every variant, seed and batch size; equibatch in batches of 10."""
    given = {"scale": "reduced", "profile": "features", "images": "features", "base": 600}
    given |= {"regimes": False, "start": 0.6, "points": 4} | kwargs
    return [
        add(store, name, seed, batch=size, **(given | {"shift": 0.001 * size}))
        for size in sizes
        for seed in seeds
        for name in names
        if size == 10 or "equibatch" not in name
    ]
