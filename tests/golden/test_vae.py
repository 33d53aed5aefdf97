"""Case a: the autoencoder."""

from collections.abc import Callable

import numpy as np
import torch

from irg.model.weights.checkpoint import LoadedModel
from irg.sequence.images import to_image, to_tensor

from .fixture import Case, close, close_uint8, equal, read_image, sub_cases


@torch.no_grad()
def test_images_to_tensors(case: Callable[[str], Case], loaded: LoadedModel) -> None:
    a = case("a_vae")
    for name in sub_cases(a, "image_u8"):
        wanted = a[f"{name}.x"][0]
        for got in (
            to_tensor(read_image(a, f"{name}.image_u8")),
            loaded.config.vae_resize(read_image(a, f"{name}.image_u8")),
        ):
            close(got, wanted, f"{name}.x", atol=0)


@torch.no_grad()
def test_encode(case: Callable[[str], Case], loaded: LoadedModel, device: torch.device) -> None:
    a, ae = case("a_vae"), loaded.autoencoder
    for name in sub_cases(a, "x"):  # the padded batch included
        x, eps = a[f"{name}.x"].to(device), a[f"{name}.eps"].to(device)
        close(ae.encode(x, eps), a[f"{name}.z"], f"{name}.z")
        if f"{name}.moments" in a:
            close(ae.moments(x), a[f"{name}.moments"], f"{name}.moments")
            close(ae.encode(x), a[f"{name}.z_mean"], f"{name}.z_mean")


@torch.no_grad()
def test_decode(case: Callable[[str], Case], loaded: LoadedModel, device: torch.device) -> None:
    a, ae = case("a_vae"), loaded.autoencoder
    for name in sub_cases(a, "decoded"):
        wanted = a[f"{name}.decoded"]
        got = ae.decode(a[f"{name}.z"].to(device))
        close(got, wanted, f"{name}.decoded")
        equal(to_image(wanted[0]), a[f"{name}.decoded_u8"], f"{name}.decoded_u8 of the recorded decoded")
        close_uint8(np.asarray(to_image(got[0])), a[f"{name}.decoded_u8"], wanted[0], f"{name}.decoded_u8")
        free = ae.decode(a[f"{name}.free_latent"].to(device))
        close(free, a[f"{name}.free_latent_decoded"], f"{name}.free_latent_decoded")
