"""Photos a second of a query network in PyTorch training, for `glimpse-trainer bench --peer`; one JSON object on stdout.

The same network as trainer/src/networks builds, from torchvision (EfficientNet-Lite from timm): backbone and last
convolution, GeM with p = 3, L2, a linear projection, L2. Forward, backward and SGD, in f32 or under autocast.
"""

import argparse
import json
import re
import time


def backbone(name):
    """The network up to its last convolution, and how many channels that has; None where no package has it."""
    parts = re.fullmatch(r"([a-z0-9-]+?)(?:-x([0-9.]+))?", name)
    if parts is None or re.search(r"-s\d+$", name):
        return None
    family, width = parts[1], float(parts[2] or 1)
    if family.startswith("efficientnet-lite"):
        try:
            import timm
        except ImportError:
            return None
        network = timm.create_model(family.replace("-", "_"), pretrained=False, num_classes=0, global_pool="")
        return network, network.num_features
    import torchvision

    if family == "mobilenet-v2":
        network = torchvision.models.mobilenet_v2(width_mult=width)
        return network.features, network.last_channel
    if family == "mobilenet-v3-small":
        network = torchvision.models.mobilenet_v3_small(width_mult=width)
        return network.features, network.classifier[0].in_features
    if family == "shufflenet-v2" and width in (0.5, 1.0):
        network = getattr(torchvision.models, f"shufflenet_v2_x{width:.1f}".replace(".", "_"))()
        parts = (network.conv1, network.maxpool, network.stage2, network.stage3, network.stage4, network.conv5)
        import torch

        return torch.nn.Sequential(*parts), network.fc.in_features
    return None


def measure(arguments, device, features, channels):
    import torch
    from torch.nn.functional import mse_loss, normalize

    features = features.to(device).train()
    projection = torch.nn.Linear(channels, arguments.dimension).to(device)
    optimizer = torch.optim.SGD([*features.parameters(), *projection.parameters()], lr=1e-3)
    half = {"f32": None, "bf16": torch.bfloat16, "f16": torch.float16}[arguments.format]
    shape = (arguments.batch, 3, arguments.size, arguments.size)
    teacher = torch.full((arguments.batch, arguments.dimension), arguments.dimension**-0.5, device=device)
    for batch in range(arguments.warm_up + arguments.batches):
        if batch == arguments.warm_up:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
        image = torch.randn(shape, device=device)
        with torch.autocast(device, dtype=half, enabled=half is not None):
            maps = features(image)
        # Pooling and loss in 32 bits, as in ours.
        pooled = maps.float().clamp_min(1e-6).pow(3).mean((2, 3)).pow(1 / 3)
        embedding = normalize(projection(normalize(pooled)))
        loss = mse_loss(embedding, teacher, reduction="sum") / arguments.batch
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        loss.item()
    if device == "cuda":
        torch.cuda.synchronize()
    return arguments.batches * arguments.batch / (time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", required=True)
    parser.add_argument("--format", choices=["f32", "bf16", "f16"], required=True)
    parser.add_argument("--device", choices=["cpu", "gpu"], required=True)
    for name in ("--size", "--batch", "--batches", "--warm-up", "--dimension"):
        parser.add_argument(name, type=int, required=True)
    arguments = parser.parse_args()

    import torch

    # ROCm's PyTorch calls its devices cuda too.
    device = "cpu" if arguments.device == "cpu" else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this PyTorch sees no GPU")
    found = backbone(arguments.network)
    print(
        json.dumps(
            {
                "program": f"torch {torch.__version__}",
                "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
                "photos_per_s": measure(arguments, device, *found) if found else None,
            }
        )
    )


if __name__ == "__main__":
    main()
