"""Random views of cutouts for contrastive training: batched torch, each view independent.

Letters: B cutouts, V views of them (V = k B, the k views of one cutout next to each other), H rows and columns of a
cutout, S rows and columns of a view, M rows and columns of the part of the rotated cutout that a view needs.

Recipes, by the names of the published model versions:

- v4: flip columns and rows (p = 0.5 each); rotate by 0-360 degrees (bilinear, zero fill); cut a square of `crop` pixels
  around the centre, shifted by up to `jitter` pixels per axis; resize to H (bilinear, edges mirrored); remove the mean.
  Agrees with reference views to 5e-5 on every pixel.
- v3: rotate; cut the central 32 x 32 pixels; resize by 2. Known from publications only.
- v2: rotate; cut 0 to `crop` pixels off each axis, this cut shifted by at most `jitter` pixels and by at most half of
  itself; resize to H. Known from publications only; independent cuts of the two axes are our interpretation.

An odd crop of v4 loses a pixel, like the central square of DT: [c - d//2, c + d//2).
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from nenya.errors import OptionError

RECIPES = ("v4", "v3", "v2")
RESAMPLINGS = ("two-step", "composed")
PADDINGS = ("zeros", "reflection")

_V3_CROP = 32  # pixels; v3 resizes them to twice as many
# The same number of random draws for every view, so that disabling one step leaves the others unchanged.
_DRAWS = 8


@dataclass(frozen=True)
class ViewParameters:
    """Parameters of each of V views; tensors (V,) on the CPU.

    Attributes:
        flip_cols: bool, reverse the order of the columns.
        flip_rows: bool, reverse the order of the rows.
        angle: float64, degrees counter-clockwise, applied after the flips.
        crop_rows: int64, rows of the cut.
        crop_cols: int64, columns of the cut.
        shift_rows: int64, pixels by which the cut is moved down from the centre.
        shift_cols: int64, pixels by which the cut is moved to the right.
        noise_seed: int64, seed of the view's own noise.
    """

    flip_cols: Tensor
    flip_rows: Tensor
    angle: Tensor
    crop_rows: Tensor
    crop_cols: Tensor
    shift_rows: Tensor
    shift_cols: Tensor
    noise_seed: Tensor

    def __len__(self) -> int:
        return len(self.angle)

    def __getitem__(self, views: slice) -> "ViewParameters":
        return replace(self, **{name: value[views] for name, value in vars(self).items()})


class ViewSampler:
    """Draws the parameters of random views and generates the views.

    Drawing and generating are separate: the parameters come from a generator on the CPU, so that the same seed gives
    the same views on every device, and tests can set the parameters.

    Args:
        recipe: "v4", "v3" or "v2": see the head of the module.
        crop: v4: pixels along a side of the cut; v2: the most pixels cut off an axis; v3 does not use it.
        jitter: v4: the most pixels by which the cut is shifted along an axis. A cut that would leave the
            cutout is clamped to it and stretched, as in the original. v2: the same limit for its cut; v3 does
            not use it.
        flip: Whether views are flipped.
        rotate: Whether views are rotated.
        demean: Whether the mean of each view is removed.
        gauss_noise: K, standard deviation of white noise, added to the finished view before its mean is
            removed. (The original had this option and never applied it.)
        resampling: "two-step" resamples twice, for the rotation and for the resize, as the original;
            "composed" once, which is faster and blurs less.
        padding: Values outside the cutout in the rotation: "zeros", as the original, which gives dark
            corners if the mean of the cutout is not 0, or "reflection".

    Raises:
        OptionError: A value is invalid.
    """

    def __init__(
        self,
        *,
        recipe: str = "v4",
        crop: int = 40,
        jitter: int = 5,
        flip: bool = True,
        rotate: bool = True,
        demean: bool = True,
        gauss_noise: float = 0.0,
        resampling: str = "two-step",
        padding: str = "zeros",
    ) -> None:
        _one_of("augment.recipe", recipe, RECIPES)
        _one_of("augment.resampling", resampling, RESAMPLINGS)
        _one_of("augment.padding", padding, PADDINGS)
        if recipe == "v4" and crop < 2:
            raise OptionError(f"expected a crop of at least 2 pixels, got {crop}: set augment.random_jitter[0]")
        if crop < 0 or jitter < 0:
            raise OptionError(f"augment.random_jitter: expected non-negative numbers of pixels, got [{crop}, {jitter}]")
        if not 0 <= gauss_noise < float("inf"):
            raise OptionError(
                f"augment.gauss_noise: expected a non-negative standard deviation in K, got {gauss_noise}"
            )
        self.recipe, self.crop, self.jitter = recipe, crop, jitter
        self.flip, self.rotate, self.demean = flip, rotate, demean
        self.gauss_noise, self.resampling, self.padding = gauss_noise, resampling, padding

    def check(self, size: int) -> None:
        """Check that views can be generated from cutouts of `size` x `size` pixels.

        Raises:
            OptionError: The cut is larger than the cutout, or leaves no pixels.
        """
        if self.recipe == "v2":
            if size - self.crop < 2:
                raise OptionError(
                    f"augment.random_jitter[0]: expected at most {size - 2} pixels with augment v2 and cutouts of "
                    f"{size} x {size} pixels, got {self.crop}"
                )
            return
        crop = _V3_CROP if self.recipe == "v3" else self.crop
        if crop > size:
            remedy = "use augment v4" if self.recipe == "v3" else f"set augment.random_jitter to [{size * 5 // 8}, 5]"
            raise OptionError(f"a crop of {crop} pixels exceeds the cutouts of {size} x {size} pixels: {remedy}")
        if self.recipe == "v4" and size // 2 - crop // 2 + crop // 2 * 2 - self.jitter < 2:
            raise OptionError(
                f"a jitter of {self.jitter} pixels moves the crop of {crop} out of cutouts of {size} x "
                f"{size} pixels: set a smaller augment.random_jitter[1]"
            )

    def output_size(self, size: int) -> int:
        """Return the number S of rows and columns of a view of cutouts with `size` rows and columns."""
        return 2 * _V3_CROP if self.recipe == "v3" else size

    def draw(self, n: int, size: int, generator: torch.Generator) -> ViewParameters:
        """Draw the parameters of `n` views of cutouts of `size` x `size` pixels.

        Draws follow each other view by view: n views drawn at once equal n views drawn in smaller
        portions.

        Args:
            n: Number of views V.
            size: Rows and columns of a cutout, H.
            generator: On the CPU; the only source of randomness.

        Raises:
            OptionError: As `check` does.
        """
        self.check(size)
        u = torch.rand(n, _DRAWS, dtype=torch.float64, generator=generator).unbind(1)
        flips = [(value < 0.5) & self.flip for value in u[:2]]
        cuts, shifts = zip(*(self._cut(size, a, b) for a, b in ((u[3], u[4]), (u[5], u[6]))), strict=True)
        return ViewParameters(
            flip_cols=flips[0],
            flip_rows=flips[1],
            angle=360.0 * u[2] * self.rotate,
            crop_rows=cuts[0],
            crop_cols=cuts[1],
            shift_rows=shifts[0],
            shift_cols=shifts[1],
            noise_seed=(u[7] * 2**53).long(),
        )

    def _cut(self, size: int, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Turn two uniform numbers a view into the length and the shift of the cut along one axis."""
        if self.recipe == "v3":
            return torch.full_like(first, _V3_CROP).long(), torch.zeros_like(first).long()
        if self.recipe == "v4":
            side = self.crop // 2 * 2
            return torch.full_like(first, side).long(), _integer(second, torch.full_like(first, self.jitter))
        cut = (first * (self.crop + 1)).long()
        return size - cut, _integer(second, (cut // 2).clamp(max=self.jitter))

    def apply(self, images: Tensor, params: ViewParameters) -> Tensor:
        """Generate views of cutouts.

        The result depends only on the parameters, up to rounding: in another split of the batch or on another
        device, pixels may differ by about 1e-5 of their contrast.

        Args:
            images: (B, 1, H, H) float32, on any device.
            params: Of V views, V a multiple of B: the first V / B belong to the first cutout, and so on.

        Returns:
            (V, 1, S, S) float32 on the device of the images. A NaN pixel makes its view NaN.

        Raises:
            OptionError: As `check` does.
        """
        batch, size = len(images), _side(images)
        if not batch or len(params) % batch:
            raise ValueError(f"expected a multiple of {batch} views, one set for each image, got {len(params)}")
        self.check(size)
        if self.resampling == "two-step" or not self.rotate:
            views = self._two_step(images, params)
        else:
            positions = self._resized(params, size, window=False)
            views = self._turned(images, params, *positions)
        if self.gauss_noise:
            views = views + self.gauss_noise * _noise(views, params.noise_seed)
        return views - views.mean((2, 3), keepdim=True) if self.demean else views

    def two_views(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Draw and generate two views of each cutout.

        Args:
            images: (B, 1, H, H) float32, on any device.
            generator: On the CPU.

        Returns:
            (B, 2, 1, S, S) float32 on the device of the images.
        """
        params = self.draw(2 * len(images), _side(images), generator)
        views = self.apply(images, params)
        return views.view(len(images), 2, *views.shape[1:])

    def _two_step(self, images: Tensor, params: ViewParameters) -> Tensor:
        """Rotate the window that the cut needs; then cut and resize."""
        size, window = images.shape[-1], _window(params)
        steps = torch.arange(window, dtype=torch.float64)
        rows = _clamped(params.shift_rows, params.crop_rows, size)[0][:, None].clamp(max=size - window) + steps
        cols = _clamped(params.shift_cols, params.crop_cols, size)[0][:, None].clamp(max=size - window) + steps
        turned = self._turned(images, params, rows, cols) if self.rotate else _picked(images, params, rows, cols)
        grid = _grid(*(_unit(q, window) for q in self._resized(params, size, window=True)))
        grid = grid.to(images.device).expand(len(params), -1, -1, -1)
        return functional.grid_sample(turned, grid, align_corners=False)

    def _resized(self, params: ViewParameters, size: int, *, window: bool) -> tuple[Tensor, Tensor]:
        """Return the positions of rows and columns of views in the rotated cutout or its window: (V, S) float64."""
        steps = (torch.arange(self.output_size(size), dtype=torch.float64) + 0.5) / self.output_size(size)
        side, positions = _window(params), []
        axes = ((params.shift_rows, params.crop_rows), (params.shift_cols, params.crop_cols))
        for shift, crop in axes:
            start, length = _clamped(shift, crop, size)
            if window:
                start = start - start.clamp(max=size - side)
            positions.append(start[:, None] + _fold(steps * length[:, None] - 0.5, length[:, None] - 1))
        if window and all((q == q[0]).all() for q in positions):
            positions = [q[:1] for q in positions]  # one grid serves all views unless cuts are clamped
        return positions[0], positions[1]

    def _turned(self, images: Tensor, params: ViewParameters, rows: Tensor, cols: Tensor) -> Tensor:
        """Sample the flipped and rotated cutouts where rows (V, P) and columns (V, Q) cross: (V, 1, P, Q)."""
        batch, size, device = len(images), images.shape[-1], images.device
        y, x = _unit(rows, size), _unit(cols, size)
        angle = torch.deg2rad(params.angle)[:, None]
        cos, sin = angle.cos(), angle.sin()
        sign_x, sign_y = (1.0 - 2.0 * flip.double()[:, None] for flip in (params.flip_cols, params.flip_rows))
        terms = (sign_x * cos * x, -sign_x * sin * y, sign_y * sin * x, sign_y * cos * y)
        xx, xy, yx, yy = (term.float().to(device) for term in terms)
        grid = torch.empty(len(params), rows.shape[1], cols.shape[1], 2, device=device)
        torch.add(xx[:, None, :], xy[:, :, None], out=grid[..., 0])
        torch.add(yx[:, None, :], yy[:, :, None], out=grid[..., 1])
        # The grids of one cutout's views are stacked along the rows: the cutout itself is not repeated.
        grid = grid.view(batch, -1, cols.shape[1], 2)
        turned = functional.grid_sample(images, grid, padding_mode=self.padding, align_corners=False)
        return turned.view(len(params), 1, rows.shape[1], cols.shape[1])


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise OptionError(f"{name} is {value!r}; expected one of {', '.join(known)}")


def _side(images: Tensor) -> int:
    """Check the shape (B, 1, H, H) of images and return H."""
    if images.ndim != 4 or images.shape[1] != 1 or images.shape[2] != images.shape[3]:
        raise ValueError(f"expected images of shape (B, 1, H, H), got {tuple(images.shape)}")
    return images.shape[-1]


def _integer(uniform: Tensor, limit: Tensor) -> Tensor:
    """Turn uniform numbers from [0, 1) into integers -limit, ..., limit."""
    return (uniform * (2 * limit + 1)).long() - limit.long()


def _window(params: ViewParameters) -> int:
    """Return the side of the square window that holds every cut."""
    return int(torch.maximum(params.crop_rows.max(), params.crop_cols.max()))


def _clamped(shift: Tensor, crop: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return first pixel and length of the cuts along one axis, clamped to the cutout."""
    start = (size - crop) // 2 + shift
    first = start.clamp(min=0)
    return first, (start + crop).clamp(max=size) - first


def _fold(positions: Tensor, last: Tensor) -> Tensor:
    """Mirror positions beyond the pixels 0 and `last` back, without repeating the edge pixel."""
    return last - (last - positions.abs()).abs()


def _unit(positions: Tensor, size: int) -> Tensor:
    """Turn pixel positions into grid_sample's coordinates, -1 to 1 from edge to edge of `size` pixels."""
    return (2 * positions + 1) / size - 1


def _grid(y: Tensor, x: Tensor) -> Tensor:
    """Return the grid (V, P, Q, 2) float32 of rows y (V, P) and columns x (V, Q)."""
    shape = (len(y), y.shape[1], x.shape[1])
    return torch.stack((x.float()[:, None, :].expand(shape), y.float()[:, :, None].expand(shape)), -1)


def _picked(images: Tensor, params: ViewParameters, rows: Tensor, cols: Tensor) -> Tensor:
    """Copy complete pixels of the flipped cutouts, exactly: (V, 1, P, Q)."""
    size, views = images.shape[-1], len(params)
    rows = torch.where(params.flip_rows[:, None], size - 1 - rows, rows).long().to(images.device)
    cols = torch.where(params.flip_cols[:, None], size - 1 - cols, cols).long().to(images.device)
    source = torch.arange(views, device=images.device) // (views // len(images))
    return images[source[:, None, None], 0, rows[:, :, None], cols[:, None, :]][:, None]


def _noise(views: Tensor, seeds: Tensor) -> Tensor:
    """Return standard normal noise for views (V, 1, S, S), each from its own seed on the CPU."""
    noise, generator = torch.empty(views.shape), torch.Generator()
    for view, seed in zip(noise, seeds.tolist(), strict=True):
        view.normal_(generator=generator.manual_seed(seed))
    return noise.to(views.device)
