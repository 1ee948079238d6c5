"""The tutorial's classifier as its reader would type it in: the yardstick of tutorial.py, kept plain on purpose.

Pairs of worker processes decode four images at a time, a network of two convolutions learns for two epochs, the
weights are saved, read back and tested. Facts from PyTorch's "Training a Classifier"; the wording is ours.

    python -m tests.bench.lab FOLDER_WITH_CIFAR10 WEIGHTS_FILE
"""

import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.utils.data import DataLoader
from torchvision.datasets import CIFAR10
from torchvision.transforms import Compose, Normalize, ToTensor

BATCH = 4
EPOCHS = 2
WORKERS = 2
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Net(nn.Module):
    """Two convolutions with pooling, then three linear layers: 62,006 weights."""

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
        x = torch.flatten(x, 1)
        x = F.relu(self.fc1(x))
        x = F.relu(self.fc2(x))
        out: Tensor = self.fc3(x)
        return out


def main(root: str, weights: str) -> None:
    device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    transform = Compose([ToTensor(), Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    train_set = CIFAR10(root, train=True, download=False, transform=transform)
    test_set = CIFAR10(root, train=False, download=False, transform=transform)
    train_loader = DataLoader(train_set, batch_size=BATCH, shuffle=True, num_workers=WORKERS)
    test_loader = DataLoader(test_set, batch_size=BATCH, shuffle=False, num_workers=WORKERS)

    train(Net().to(device), train_loader, device, weights)

    net = Net()
    net.load_state_dict(torch.load(weights, weights_only=True))
    test(net.to(device), test_loader, device)


def train(net: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: torch.device, weights: str) -> None:
    criterion = nn.CrossEntropyLoss()
    optimizer = optim.SGD(net.parameters(), lr=0.001, momentum=0.9)
    began = time.perf_counter()
    for epoch in range(EPOCHS):
        running_loss = 0.0
        for i, (images, labels) in enumerate(loader):
            optimizer.zero_grad()
            loss = criterion(net(images.to(device)), labels.to(device))
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            if i % 2000 == 1999:
                print(f"[{epoch + 1}, {i + 1:5d}] loss: {running_loss / 2000:.3f}", flush=True)
                running_loss = 0.0
    print(f"Training took {time.perf_counter() - began:.2f} s")
    torch.save(net.state_dict(), weights)


def test(net: nn.Module, loader: DataLoader[tuple[Tensor, int]], device: torch.device) -> None:
    right, seen = [0] * len(CLASSES), [0] * len(CLASSES)
    with torch.no_grad():
        for images, labels in loader:
            predicted = net(images.to(device)).argmax(1).cpu()
            for label, prediction in zip(labels.tolist(), predicted.tolist(), strict=True):
                seen[label] += 1
                right[label] += label == prediction
    print(f"Accuracy on the {sum(seen)} test images: {100 * sum(right) / sum(seen):.2f} %")
    for name, hits, count in zip(CLASSES, right, seen, strict=True):
        print(f"Accuracy for class {name:5s}: {100 * hits / count:.1f} %")


if __name__ == "__main__":
    main(*sys.argv[1:])
