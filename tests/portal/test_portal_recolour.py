from nenya.portal.recolour import recolour
from nenya.portal.sheets import Picture, Sheet
from nenya.portal.theme import Theme
from nenya.portal.views import Plane

ROLES = ("ink", "paper", "rest", "mark", "chosen", "land")


def colours_in(plots):
    """Return all colours of the models of figures."""
    found = set()
    for model in {model for plot in plots for model in plot.references()}:
        for name in model.properties():
            if name.endswith("_color"):
                value = getattr(model, name)
                found.add(getattr(value, "value", value))
    return {value for value in found if isinstance(value, str)}


def test_a_page_that_becomes_dark_keeps_no_colour_of_the_light_one():
    light, dark = Theme(), Theme(dark=True)
    assert len({getattr(light, role) for role in ROLES}) == len(ROLES)  # so that each has one counterpart
    assert len({getattr(dark, role) for role in ROLES}) == len(ROLES)
    plane = Plane("map", (-180.0, 180.0, -85.0, 85.0), light)
    plots = [plane.plot, Sheet("gallery", light).plot, Picture(light).plot]
    before = colours_in(plots)
    assert {light.paper, light.ink, light.mark, light.land} <= before
    recolour({model for plot in plots for model in plot.references()}, light, dark)
    after = colours_in(plots)
    assert not {getattr(light, role) for role in ROLES} & after
    assert {dark.paper, dark.ink, dark.mark, dark.land} <= after
    assert tuple(plane.colours.mapper.palette) == dark.counts and plane.grey.palette == dark.greys
    recolour({model for plot in plots for model in plot.references()}, dark, light)
    assert colours_in(plots) == before
