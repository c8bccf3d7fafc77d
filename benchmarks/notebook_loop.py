"""The notebook's way: nets, data and loops as a teaching notebook writes them. The baseline that Runoff is measured against.

Stands alone: nothing of Runoff is imported. Prints what the notebook prints, and as its last line what it measured, as
JSON. The clock runs from before the net is made until the last test image is answered; opening the data is outside.

    python benchmarks/notebook_loop.py fc --mnist FOLDER_OF_TORCHVISION
    python benchmarks/notebook_loop.py vgg --arrays FOLDER_OF_NPY_FILES --steps 300
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader, Dataset
from torchvision import datasets, transforms

Batches = DataLoader[tuple[Tensor, Tensor]]

# The nets ------------------------------------------------------------------------------------------------------------


class FC(nn.Module):
    """Two hidden layers of 8 units; images [N, 1, 28, 28] -> log-probabilities [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Sequential(
            nn.Linear(28 * 28, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 10), nn.LogSoftmax(dim=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.network(x.view(-1, 28 * 28))
        return answer


class CNN(nn.Module):
    """Two convolutions of 6 maps; images [N, 1, 28, 28] -> log-probabilities [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 6, kernel_size=5)
        self.conv2 = nn.Conv2d(6, 6, kernel_size=5)
        self.fc1 = nn.Linear(6 * 4 * 4, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), kernel_size=2)
        x = F.max_pool2d(F.relu(self.conv2(x)), kernel_size=2)
        x = F.relu(self.fc1(x.view(-1, 6 * 4 * 4)))
        return F.log_softmax(self.fc2(x), dim=1)


class LeNet(nn.Module):
    """Images [N, 3, 32, 32] -> logits [N, 10]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.pool = nn.MaxPool2d(2, 2)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.conv1(x)))
        x = self.pool(F.relu(self.conv2(x)))
        x = x.view(-1, 16 * 5 * 5)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


class VGG(nn.Module):
    """The cut-down VGG, 8 convolutions; images [N, 3, 32, 32] -> logits [N, 10]."""

    table = (64, "M", 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M")

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for entry in self.table:
            if isinstance(entry, str):
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.BatchNorm2d(entry), nn.ReLU(inplace=True)]
                channels = entry
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        logits: Tensor = self.classifier(x.view(x.size(0), -1))
        return logits


NETS: dict[str, type[nn.Module]] = {"fc": FC, "cnn": CNN, "lenet": LeNet, "vgg": VGG}

# The data ------------------------------------------------------------------------------------------------------------


class ImagesInMemory(Dataset[tuple[Any, int]]):
    """Decoded images in memory, a PIL image made of each as it is asked for, as torchvision's CIFAR10 has it.

    Reads ``SPLIT-images.npy`` (uint8 [N, C, H, W]) and ``SPLIT-labels.npy`` ([N]) in a folder.
    """

    def __init__(self, folder: Path, split: str, transform: Any) -> None:
        images = np.load(folder / f"{split}-images.npy", allow_pickle=False)
        self.data = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).squeeze()  # grey images have no channel axis
        self.targets: list[int] = np.load(folder / f"{split}-labels.npy", allow_pickle=False).tolist()
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.data[index])), self.targets[index]


def image_transforms(net: str) -> tuple[Any, Any]:
    """What is done to each training image and to each test image."""
    if net in ("fc", "cnn"):
        plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
        return plain, plain
    if net == "lenet":
        plain = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
        return plain, plain
    normalize = transforms.Normalize((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    augmented = transforms.Compose(
        [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor(), normalize]
    )
    return augmented, transforms.Compose([transforms.ToTensor(), normalize])


def open_data(net: str, mnist: Path | None, arrays: Path | None) -> tuple[Batches, Batches]:
    """Batches for training, shuffled, and for the test, with the notebook's sizes and numbers of loader processes."""
    for_train, for_test = image_transforms(net)
    train: Dataset[Any]
    test: Dataset[Any]
    if mnist is not None:
        train = datasets.MNIST(mnist, train=True, transform=for_train)
        test = datasets.MNIST(mnist, train=False, transform=for_test)
    else:
        assert arrays is not None
        train, test = ImagesInMemory(arrays, "train", for_train), ImagesInMemory(arrays, "test", for_test)
    train_size, test_size, workers = {"fc": (64, 1000, 0), "cnn": (64, 1000, 0), "lenet": (64, 8, 0)}.get(
        net, (128, 128, 2)
    )
    return (
        DataLoader(train, batch_size=train_size, shuffle=True, num_workers=workers),
        DataLoader(test, batch_size=test_size, shuffle=False, num_workers=workers),
    )


# The loops -----------------------------------------------------------------------------------------------------------


@dataclass
class Work:
    """What was done, so that both sides can be held to the same."""

    steps: int = 0
    images: int = 0


def train(
    model: nn.Module,
    batches: Batches,
    optimizer: optim.Optimizer,
    criterion: Any,
    device: torch.device,
    work: Work,
    most_steps: int | None,
) -> None:
    """One epoch, or its first ``most_steps`` steps."""
    model.train()
    for index, (images, labels) in enumerate(batches):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        if index % 100 == 0:
            print(f"Train: [{work.images}] Loss: {loss.item():.6f}")
        work.steps += 1
        work.images += len(labels)
        if index + 1 == most_steps:
            break


def test(model: nn.Module, batches: Batches, device: torch.device) -> tuple[int, int]:
    """How many test images are answered rightly, and how many there are."""
    model.eval()
    correct = total = 0
    with torch.no_grad():
        for images, labels in batches:
            images, labels = images.to(device), labels.to(device)
            predicted = model(images).argmax(dim=1)
            correct += int((predicted == labels).sum().item())
            total += len(labels)
    print(f"Accuracy: {correct}/{total} ({100 * correct / total:.2f}%)")
    return correct, total


def run(net: str, seed: int, epochs: int, data: tuple[Batches, Batches], most_steps: int | None) -> dict[str, Any]:
    """Train a new net and test it once; times in seconds."""
    torch.manual_seed(seed)
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    train_batches, test_batches = data
    work = Work()
    begin = time.perf_counter()
    model = NETS[net]().to(device)
    optimizer: optim.Optimizer
    if net in ("fc", "cnn"):
        optimizer, criterion = optim.SGD(model.parameters(), lr=0.01, momentum=0.5), F.nll_loss
    else:
        optimizer, criterion = optim.Adam(model.parameters(), lr=0.001), F.cross_entropy
    for _epoch in range(epochs):
        train(model, train_batches, optimizer, criterion, device, work, most_steps)
    if device.type == "cuda":
        torch.cuda.synchronize()
    trained = time.perf_counter()
    correct, total = test(model, test_batches, device)
    end = time.perf_counter()
    return {
        "seed": seed,
        "seconds": end - begin,
        "train_seconds": trained - begin,
        "test_seconds": end - trained,
        "steps": work.steps,
        "num_trained": work.images,
        "num_tested": total,
        "accuracy": correct / total,
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("net", choices=[*NETS])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--mnist", type=Path, help="a torchvision root with MNIST in it")
    where.add_argument("--arrays", type=Path, help="a folder with train-images.npy and so on")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--steps", type=int, help="end each epoch after so many steps")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="train so many nets, one after the other")
    parser.add_argument("--threads", type=int, help="default: PyTorch's own choice")
    options = parser.parse_args(argv)
    if options.threads:
        torch.set_num_threads(options.threads)
    optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # PyTorch imports some of itself only now: before the clock
    data = open_data(options.net, options.mnist, options.arrays)
    loops = [run(options.net, seed, options.epochs, data, options.steps) for seed in options.seeds]
    print(json.dumps({"loops": loops, "threads": torch.get_num_threads(), "precision": "float32"}))


if __name__ == "__main__":
    main()
