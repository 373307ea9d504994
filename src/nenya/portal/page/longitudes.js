// Longitudes of the map beyond the dateline: 190 is shown as -170.
"use strict";
const longitudes = (page) => {
  const axis = page.get_model_by_name("longitudes");
  if (!axis) return;
  axis.formatter.doFormat = (ticks) => ticks.map((tick) => String((((tick + 180) % 360) + 360) % 360 - 180));
  axis.change.emit();
};
