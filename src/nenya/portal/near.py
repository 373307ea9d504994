"""Similar cutouts: by the primary image, or by positive and negative examples; pages, selection and list of them."""

from typing import Any

import numpy as np

from nenya.errors import InputFileError
from nenya.portal import words, work
from nenya.portal.pages import part
from nenya.portal.screen import Screen
from nenya.portal.sets import Rows
from nenya.portal.state import MOST_EXAMPLES, PLANES, make_rows
from nenya.portal.uncertain import order_note
from nenya.portal.upload import Upload
from nenya.portal.work import Similar

_FALLBACK = 5  # neighbours whose mean position approximates that of an image
_MARKED = 20  # neighbours marked by a circle, at most


class Near(Screen):
    """The similar cutouts of a page."""

    _near_of = _note = ""
    _near_search = object()

    def find_near(self) -> None:
        """Search the cutouts whose latents are closest to that of the primary image."""
        dataset, view, upload = self.dataset, self.selection.view, self.upload
        latents, row = dataset.latents, self.row
        examples = view.examples if upload is None else ((), ())
        if latents is None or (upload is None and row is None and not any(examples)):
            return
        filters = view.filters if view.near[0] else ()
        apart, query = view.near[1], None if upload is None else upload.latent

        name, shown = self.shown_name, self._near_of
        like, unlike = examples
        if any(examples):
            name = "the examples"
            like = like or ((row,) if row is not None else ())
        mine = self._near_search = object()

        def done(found: Similar | None) -> None:
            self.found, self._near_of, self.near_page = found, name, 0
            if found is None:
                note = "This cutout has no latent (missing pixels, or not in the latents files)."
                self.found = Similar(np.empty(0, np.int64), np.empty(0))
            else:
                kind = " within the filters" if filters else ""
                placed = "" if upload is None or not len(found.rows) else self._place_upload(upload, found)
                single = row if upload is None and not any(examples) else None
                doubt = order_note(dataset.columns, found.rows, found.cosine, single)
                note = f"{len(found.rows)} closest by cosine of latents{kind}{placed}{doubt}"
                if not len(found.rows):
                    note = f"There is no other cutout with a latent{kind}."
            self._note = note
            self.draw_near()

        def ended(text: str) -> None:
            if self._near_search is mine and shown and shown != name:
                note = f"Search ended ({text.rstrip('.')}): the cutouts shown are those most similar to {shown}."
                self._text("near_note", words.note(note))

        self.jobs.start(
            "near",
            lambda ticket: (
                work.find_by_examples(dataset, like, unlike, filters, apart, ticket)
                if like and any(examples)
                else work.find_similar(dataset, query, row, filters, apart, ticket)
            ),
            done,
            title="searching similar cutouts",
            slow=True,
            ended=ended,
        )

    def _place_upload(self, upload: Upload, found: Similar) -> str:
        """Mark a new image in the UMAP, and return how its position was found: by projector or neighbours."""
        if "umap" not in self.planes:
            return ""
        if upload.place is not None:
            self.planes["umap"].mark_at(*upload.place)
            return "; the cross in the UMAP is the position of the image by the projector"
        rows, cosine = found.rows[:_FALLBACK], found.cosine[: _FALLBACK + 1]
        x, y = (self.dataset.columns.values(name)[rows].astype(np.float64) for name in PLANES["umap"])
        known = np.isfinite(x) & np.isfinite(y)
        if not known.any():
            return ""
        weight = np.maximum(cosine[: len(rows)] - cosine.min() + 1e-6, 1e-6)[known]
        self.planes["umap"].mark_at(*(float(np.average(v[known], weights=weight)) for v in (x, y)))
        return (
            "; the cross in the UMAP is an approximation, the mean position of the five closest: start the portal with "
            "projector= for the position of the image itself"
        )

    def draw_near(self) -> None:
        """Draw the sheet of neighbours, and mark them in the UMAP and on the map."""
        if self.found is None:
            return
        dataset, sheet, found = self.dataset, self.near, self.found
        columns, most = dataset.columns, sheet.most if dataset.cutouts is not None else max(1, len(found.rows))
        self.near_page = min(self.near_page, max(0, (len(found.rows) - 1) // most))
        first = self.near_page * most
        rows, cosine = found.rows[first : first + most], found.cosine[first : first + most]
        self._show_note(first, len(rows))
        marked = rows if dataset.cutouts is not None else rows[:_MARKED]
        for name, plane in self.planes.items():
            x, y = (columns.values(column)[marked] for column in PLANES[name])
            chosen = self.upload is not None or self.selection.view.row is not None
            plane.mark_near(*((x, y) if chosen else (x[:0], y[:0])))  # those of an example would be in the way
        self.uncertain.show_near(marked)
        self.near_rows = rows
        self._show_near_list()
        if dataset.cutouts is None:
            return
        own, shape = self.selection.view.scale == "own", (sheet.columns, sheet.rows)

        def done(result: Any) -> None:
            if shape != (sheet.columns, sheet.rows):
                self.draw_near()
                return
            picture, span, captions, there = result
            texts = [f"{text}, cosine {c:.4f}" for text, c in zip(captions, cosine, strict=True)]
            notes = [f"{c:.3f}" if known else f"{c:.3f}, no image" for c, known in zip(cosine, there, strict=True)]
            sheet.show(picture, span, texts, notes, rows.tolist())

        self.jobs.start("near sheet", lambda ticket: work.draw_sheet(dataset, rows, shape, own, ticket), done)

    def _show_note(self, first: int, count: int) -> None:
        """Say what was searched, which page of it is shown, and by which examples."""
        found, (like, unlike) = self.found, self.selection.view.examples
        total = 0 if found is None else len(found.rows)
        pages = f"{first + 1} to {first + count}" if count < total else ""
        examples = [(row, sign) for sign, rows in (("+", like), ("-", unlike)) for row in rows]
        self._text("near_note", part("near_note", text=self._note, examples=examples))
        # apart: if a note changed its length with the page, the number of cutouts that fit would change too
        self._text("near_pages", part("near_pages", pages=pages, last=first + count >= total))

    def turn_near(self, step: int) -> None:
        """Show the next or previous page of the similar cutouts."""
        self.near_page = max(0, self.near_page + step)
        self.draw_near()

    def near_filter(self) -> Rows:
        """Return the filter of the similar cutouts.

        Raises:
            InputFileError: There are none.
        """
        if self.found is None or not len(self.found.rows):
            raise InputFileError("there are no similar cutouts to select")
        return make_rows(self.found.rows.tolist(), f"{len(self.found.rows)} similar to {self._near_of}")

    def with_example(self, text: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Return the examples after an action.

        Args:
            text: `+` or `-` makes the primary image an example or a counter-example, `17` removes row 17, `` all.

        Raises:
            InputFileError: The image cannot be an example, or there are too many.
        """
        row, (like, unlike) = self.row, self.selection.view.examples
        if text not in ("+", "-"):
            keep = [tuple(r for r in rows if text and str(r) != text) for rows in (like, unlike)]
            return keep[0], keep[1]
        if self.upload is not None or row is None or self.dataset.latent_of[row] < 0:
            raise InputFileError("this image is no example: it has no latent in the archive")
        like, unlike = (tuple(r for r in rows if r != row) for rows in (like, unlike))
        if len(like) + len(unlike) >= MOST_EXAMPLES:
            raise InputFileError(f"there are {MOST_EXAMPLES} examples, the largest number allowed: remove one first")
        return ((*like, row), unlike) if text == "+" else (like, (*unlike, row))

    def _show_near_list(self) -> None:
        """List the neighbours, if there are no images of them or the list is chosen."""
        found = self.found
        if found is None or not self.near_listed:
            return
        rows = self.dataset.columns.take(found.rows).to_pylist()
        self._text("near_list", words.near_list(rows, found.rows.tolist(), found.cosine.tolist()))
