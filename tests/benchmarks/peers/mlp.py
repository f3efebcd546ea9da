import torch

torch.set_num_threads(1)


def make():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(784, 128), torch.nn.ReLU(), torch.nn.Linear(128, 10)).eval()


def answer(y):
    return {"outputs": [{"name": "y", "shape": [1, 10], "datatype": "FP32", "data": y}]}
