"use strict";
(async () => {
  const read = (id) => document.getElementById(id).textContent;
  const root = document.documentElement;
  const button = document.getElementById("theme");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const phone = matchMedia("(max-width: 30rem)");
  const themes = JSON.parse(read("themes"));
  const figures = read("figures");
  const config = { responsive: true, displaylogo: false, displayModeBar: false };
  const ONE_LINE = 30; // px of a legend
  let chosen = null;

  const current = () => chosen || (dark.matches ? "dark" : "light");

  // "@0/0.2" is colour 0 of the theme at opacity 0.2; every other string stays as it is.
  const colours = (palette) => (_, value) => {
    const token = typeof value === "string" && value.match(/^@(\w+)(?:\/([0-9.]+))?$/);
    const colour = token && palette[token[1]];
    if (!colour) return value;
    if (!token[2]) return colour;
    const channel = (i) => parseInt(colour.slice(i, i + 2), 16);
    return `rgba(${channel(1)},${channel(3)},${channel(5)},${token[2]})`;
  };

  const draw = async () => {
    const resolved = JSON.parse(figures, colours(themes[current()]));
    for (const place of document.querySelectorAll("[data-figure]")) {
      const { data, layout } = resolved[place.dataset.figure];
      const below = phone.matches && { y: 0, yref: "container", yanchor: "bottom" };
      layout.legend = { ...layout.legend, ...below };
      await Plotly.react(place, data, layout, config);
      const legend = place.querySelector(".legend .bg");
      const height = layout.height + Math.max(0, (legend?.getBBox().height ?? 0) - ONE_LINE);
      place.style.height = `${height}px`; // the plot keeps its height, however long the legend
      await Plotly.relayout(place, { height });
    }
  };

  let last = Promise.resolve();
  const show = () => {
    button.textContent = current() === "dark" ? "Light theme" : "Dark theme";
    last = last.then(draw);
    return last;
  };

  const hint = (box) =>
    box.toggleAttribute("data-more", box.scrollLeft + box.clientWidth < box.scrollWidth - 1);
  const resized = new ResizeObserver((entries) => entries.forEach(({ target }) => hint(target)));
  for (const box of document.querySelectorAll(".scroll")) {
    resized.observe(box);
    box.addEventListener("scroll", () => hint(box), { passive: true });
  }

  root.dataset.scripts = "on"; // figures are hidden without
  const packed = Uint8Array.from(atob(read("plotly")), (c) => c.charCodeAt(0));
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(stream).text();
  document.head.append(script);

  button.hidden = false;
  button.addEventListener("click", () => {
    chosen = current() === "dark" ? "light" : "dark";
    root.dataset.theme = chosen;
    show();
  });
  dark.addEventListener("change", () => chosen || show());
  phone.addEventListener("change", show);
  await show();
  root.dataset.drawn = "true";
})().catch((error) => {
  delete document.documentElement.dataset.scripts;
  const note = document.getElementById("trouble");
  note.textContent = `The figures could not be drawn: ${error.message}. All tables are complete.`;
  note.hidden = false;
});
