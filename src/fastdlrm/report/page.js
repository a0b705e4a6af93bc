"use strict";
// Draws every chart in the colors of the page, again when the page turns light or dark or is printed.
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

  const draw = async (width) => {
    const style = getComputedStyle(document.documentElement);
    const drawn = places.map((place, i) => {
      const { data, layout } = colored(figures[i], style);
      layout.font.family = style.getPropertyValue("--font");
      return Plotly.newPlot(place, data, { ...layout, width }, config);
    });
    for (const place of await Promise.all(drawn)) place.dataset.drawn = "yes";
    document.documentElement.dataset.drawn = places.length;
  };

  const print = (isPrinted) => {
    document.documentElement.classList.toggle("printed", isPrinted);
    draw(isPrinted ? 660 : undefined); // paper is narrower than a window, and white
  };

  draw();
  addEventListener("beforeprint", () => print(true));
  addEventListener("afterprint", () => print(false));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => draw());
})();
