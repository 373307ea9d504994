"""Actions of a session on two selections, A and B, and the panels that show both."""

import json
from dataclasses import replace
from typing import Any

from nenya.errors import InputFileError
from nenya.portal import categories, pair, pair_words, work
from nenya.portal.pair import COLOURS, NAMES, Pair, Sizes, pair_of
from nenya.portal.pair_compare import LARGEST_SEED, LIMITS, Difference, compare_pair
from nenya.portal.state import View
from nenya.portal.tag_words import tag_notes
from nenya.portal.tagging import Tagging


class Against(Tagging):
    """Two selections of a page against each other."""

    _difference: tuple[Pair, Difference] | None = None
    _sizes: tuple[Pair, Sizes] | None = None

    @property
    def pair(self) -> Pair | None:
        """The two selections, if there are two."""
        return pair_of(self.selection.view)

    def against(self, action: str) -> None:
        """Hold the present selection as `a` or `b`, `swap` the two, or `drop` them."""
        view = self.selection.view
        a, b = view.held
        held = {
            "a": (view.filters, b),
            "b": (a, view.filters),
            "swap": (b, a),
            "drop": (None, None),
        }.get(action, view.held)
        if held != view.held:
            self.go_to(replace(view, held=held, tab="against" if action in ("a", "b") else view.tab))

    def compare(self, text: str) -> None:
        """Search the differences of the two selections.

        Args:
            text: JSON of [cutouts of each at most, seed]; untrusted.

        Raises:
            InputFileError: There are no two selections, or the numbers are not possible.
        """
        sample, seed = json.loads(text)
        found, dataset = self.pair, self.dataset
        if found is None:
            raise InputFileError("there are no two selections: hold one as A, then make another")
        if sample not in LIMITS or type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
            limits = ", ".join(map(str, LIMITS))
            raise InputFileError(f"expected {limits} cutouts and a seed from 0 to {LARGEST_SEED}")
        two = found

        def done(difference: Difference) -> None:
            self._difference = two, difference
            self.show_against()

        self.jobs.start(
            "compare",
            lambda ticket: compare_pair(dataset, two, int(sample), seed, ticket),
            done,
            title="comparing A and B",
            long=True,
        )

    def show_against(self) -> None:
        """Show what is held, and the differences that were found."""
        two = self.pair
        of_sizes = self._sizes[1] if self._sizes is not None and self._sizes[0] == two else None
        found = self._difference
        of_difference = found[1] if found is not None and found[0] == two else None
        view, latents = self.selection.view, self.dataset.latents is not None
        self._text("against", pair_words.panel(view, two, of_sizes, of_difference, latents=latents))

    def draw_pair(self) -> None:
        """Count both selections, and show them in the histograms, the legend and the panel."""
        dataset, two, charts = self.dataset, self.pair, dict(self.histograms)
        self.show_against()
        if two is None:
            self.jobs.cancel("pair")
            for chart in charts.values():
                chart.show_pair((), COLOURS)
            return
        known = two

        def done(found: Sizes) -> None:
            self._sizes = known, found
            for name, chart in charts.items():
                chart.show_pair(found.counts[name], COLOURS)
            self._text("legend", pair_words.legend(found))
            self.show_against()

        self.jobs.start("pair", lambda ticket: pair.sizes(dataset, known, tuple(charts), ticket), done)

    def draw_plane(self, name: str) -> None:
        """Draw the UMAP or the map, with two selections in their colours."""
        two, plane = self.pair, self.planes[name]
        extent = plane.extent
        if two is None or not extent[0] < extent[1] or not extent[2] < extent[3]:
            super().draw_plane(name)
            return
        if name == "umap":
            self.jobs.cancel("pale places")
            self.uncertain.pale(None, extent)
        known = two
        self.jobs.start(
            f"draw {name}",
            lambda ticket: pair.plane_of(self.dataset, name, extent, known, ticket),
            lambda found: plane.show(found[0], found[1], extent, "", COLOURS, found[2]),
        )

    def draw_legend(self) -> None:
        """Show the classes of the colours; of two selections, see `draw_pair`."""
        self.draw_pair()
        if self.pair is None:
            super().draw_legend()
            return
        self.jobs.cancel("legend")
        if "umap" in self.planes:
            self.planes["umap"].name_at(*categories.names_on(None, self.planes["umap"].home))

    def draw_gallery(self) -> None:
        """Draw the current page of the gallery: of two selections, as many cutouts of each."""
        dataset, sheet, two = self.dataset, self.gallery, self.pair
        if two is None or dataset.cutouts is None:
            sheet.frame(())
            super().draw_gallery()
            return
        known, view, shape = two, self.selection.view, (sheet.columns, sheet.rows)
        own, order, page = view.scale == "own", (view.order, view.descending), self.sheet_page

        def make(ticket: Any) -> Any:
            rows, sets, number = pair.gallery_rows(dataset, known, order, page, sheet.most, ticket)
            return rows, sets, number, work.draw_sheet(dataset, rows, shape, own, ticket)

        def done(result: Any) -> None:
            if shape != (sheet.columns, sheet.rows):
                self.draw_gallery()
                return
            rows, sets, self.sheet_page, (picture, span, captions, there) = result
            self.gallery_rows, self.gallery_picture = rows, picture
            tags = tag_notes(dataset.columns, rows, there)
            notes = [f"{NAMES[one]} {tag}".strip() for one, tag in zip(sets, tags, strict=True)]
            texts = [f"{NAMES[one]}: {text}" for one, text in zip(sets, captions, strict=True)]
            sheet.show(picture, span, texts, notes, rows.tolist())
            sheet.frame([COLOURS[one] for one in sets])
            self._text("gallery_note", "")

        self.jobs.start("gallery", make, done, title="drawing cutouts")

    def _show_statistics(self) -> None:
        dataset, two = self.dataset, self.pair
        super()._show_statistics()
        if two is None or self.tab != "stats":
            return
        known = two
        self.jobs.start(  # in place of those of the present selection
            "statistics",
            lambda ticket: pair_words.statistics(*pair.summaries(dataset, known, ticket)),
            lambda text: self._text("stats", text),
        )

    def go_to(self, view: View) -> None:
        """Make a step to another view; see `nenya.portal.session`."""
        raise NotImplementedError
