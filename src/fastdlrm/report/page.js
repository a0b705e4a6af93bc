"use strict";
// Draws every chart in the colors of the page, again when the page turns light or dark.
(() => {
  const figures = JSON.parse(document.getElementById("charts").textContent);
  const places = [...document.querySelectorAll(".chart")];
  const config = { responsive: true, displayModeBar: false };

  const colored = (value, style) => {
    if (Array.isArray(value)) return value.map((item) => colored(item, style));
    if (value === null || typeof value !== "object") return value;
    const entries = Object.entries(value).map(([key, item]) => {
      const isColor = key.endsWith("color") && typeof item === "string";
      return [key, isColor ? style.getPropertyValue(item).trim() : colored(item, style)];
    });
    return Object.fromEntries(entries);
  };

  const draw = async () => {
    const style = getComputedStyle(document.documentElement);
    for (const [i, place] of places.entries()) {
      const { data, layout } = colored(figures[i], style);
      layout.font.family = style.getPropertyValue("--font");
      await Plotly.react(place, data, layout, config);
      place.dataset.drawn = "yes";
    }
    document.documentElement.dataset.drawn = places.length;
  };

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
