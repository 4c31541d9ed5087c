"use strict";
// The curves: one small chart for a few metrics. Several runs lie over each other.

(function () {
  const [first, rest] = document.querySelectorAll(".charts");
  if (!first) return;
  const runs = DATA.runs;
  const AXES = [["iterations", "iterations"], ["tokens", "decoded tokens"], ["seconds", "seconds of search and update"]];
  const DASHES = [[], [6, 4], [2, 3], [10, 3, 2, 3], [1, 5]];
  const drawn = []; // charts with what is needed to draw them again
  let axis = DATA.axis;

  const fieldset = document.getElementById("axis");
  for (const [name, title] of AXES) {
    const input = el("input", { type: "radio", name: "axis", value: name, checked: name === axis });
    input.addEventListener("change", () => { axis = name; draw(); });
    fieldset.append(el("label", {}, input, " " + title));
  }

  // The lines of a chart: one for each metric and run that has it.
  function linesOf(chart) {
    const lines = [];
    chart.series.forEach(([metric, label], kind) => runs.forEach((run) => {
      const values = run.metrics[metric];
      if (!values) return;
      const many = runs.length > 1;
      lines.push({
        run, values, metric,
        label: many ? run.name + ", " + label : label,
        colour: RUN_COLOURS[(many ? run.colour : kind) % RUN_COLOURS.length],
        dash: DASHES[kind % DASHES.length],
        band: chart.band === metric && run.metrics[metric + "_low"] ? [run.metrics[metric + "_low"], run.metrics[metric + "_high"]] : null,
      });
    }));
    return lines;
  }

  // Columns over one x for all lines; uPlot wants x in rising order, each once.
  function joined(columns) {
    return uPlot.join(columns.map(([run, values]) => {
      const x = [], y = [];
      run[axis].forEach((at, i) => {
        if (values[i] === null) return;
        if (x.length && at === x[x.length - 1]) y[y.length - 1] = values[i];
        else { x.push(at); y.push(values[i]); }
      });
      return [x, y];
    }));
  }

  function make(chart, lines, host, width) {
    const columns = [], series = [{ label: axis }], bands = [];
    const scale = chart.unit === "share" ? 100 : 1, unit = chart.unit === "share" ? " %" : "";
    const value = (u, v) => v === null || v === undefined ? "–" : short(v) + unit;
    const add = (run, values, options) => {
      columns.push([run, values.map((v) => (v === null ? null : scale * v))]);
      series.push({ spanGaps: true, value, ...options });
    };
    for (const line of lines) {
      const stroke = colour(line.colour), known = line.values.filter((v) => v !== null).length;
      const sparse = known < 0.5 * line.values.length;
      add(line.run, line.values, {
        label: line.label, stroke, dash: line.dash, width: 1.8, points: { show: sparse, size: 5, fill: stroke },
      });
      if (!line.band) continue;
      for (const ends of line.band) add(line.run, ends, { label: "", stroke: "transparent", points: { show: false }, class: "hidden-series" });
      bands.push({ series: [series.length - 1, series.length - 2], fill: stroke + "26" });
    }
    const ink = colour("--muted"), grid = { stroke: colour("--line"), width: 1 };
    const style = { stroke: ink, grid, ticks: { stroke: colour("--line"), width: 1, size: 4 }, font: "11px system-ui, sans-serif" };
    const short_axis = (u, splits) => splits.map((v) => Math.abs(v) >= 1e6 ? v / 1e6 + "M" : Math.abs(v) >= 1e4 ? v / 1e3 + "k" : short(v));
    const atLast = (u) => { if (!(u.cursor.left >= 0)) u.setLegend({ idx: u.data[0].length - 1 }); };
    const plot = new uPlot({
      width, height: 190, bands, series,
      scales: { x: { time: false }, y: chart.unit === "share" ? { range: (u, low, high) => [Math.min(0, low), Math.max(100, high)] } : {} },
      axes: [{ ...style, size: 28, values: short_axis }, { ...style, size: 46, values: short_axis }],
      cursor: { sync: { key: "charts" }, drag: { x: true, y: false } },
      hooks: { setCursor: [atLast] },
    }, joined(columns), host);
    atLast(plot);
    return plot;
  }

  function said(lines, chart) {
    return chart.title + ". " + lines.map((line) => {
      const known = line.values.filter((v) => v !== null);
      const told = chart.unit === "share" ? percent : short;
      return line.label + ": from " + told(known[0]) + " to " + told(known[known.length - 1]);
    }).join(". ");
  }

  function draw() {
    for (const item of drawn) {
      if (item.plot) item.plot.destroy();
      const width = Math.floor(item.host.clientWidth);
      item.plot = make(item.chart, item.lines, item.host, width);
    }
  }

  // How often it came true, by how likely the value model said it was.
  function calibration() {
    const known = runs.filter((run) => run.calibration);
    if (!known.length) return null;
    const size = 190, pad = 30, at = (v) => pad + v * (size - pad - 8), up = (v) => size - at(v);
    const plot = svg("svg", { viewBox: "0 0 " + size + " " + size, class: "reliability", role: "img", "aria-label": "Calibration of the value model" });
    plot.append(svg("path", { d: `M${at(0)} ${up(0)}L${at(1)} ${up(1)}`, class: "diagonal" }));
    for (const v of [0, 0.5, 1]) {
      for (const [x, y, anchor] of [[at(v), size - 12, "middle"], [pad - 6, up(v) + 4, "end"]]) {
        const label = svg("text", { x, y, "text-anchor": anchor });
        label.textContent = 100 * v;
        plot.append(label);
      }
    }
    known.forEach((run) => {
      const index = run.colour;
      for (const [said, came, share] of run.calibration.bins) {
        const dot = svg("circle", { cx: at(said), cy: up(came), r: 2 + 9 * Math.sqrt(share), class: "dot" + (index % RUN_COLOURS.length) });
        const title = svg("title");
        title.textContent = `said ${percent(said)}, came true ${percent(came)}, ${percent(share)} of prefixes`;
        dot.append(title);
        plot.append(dot);
      }
    });
    const iteration = known[known.length - 1].calibration.iteration;
    return el("figure", { className: "chart" }, el("figcaption", {}, el("b", {}, "Calibration"),
      el("small", {}, `Iteration ${iteration}. Across: success that the value model foresaw, %. Up: how often it came true, %. On the line it is honest.`)), plot);
  }

  for (const [group, charts] of DATA.charts) {
    const grid = el("div", { className: "grid" });
    for (const chart of charts) {
      const lines = linesOf(chart);
      if (!lines.length) continue;
      const host = el("div", { className: "plot", role: "img", "aria-label": said(lines, chart) });
      grid.append(el("figure", { className: "chart" }, el("figcaption", {}, el("b", {}, chart.title), el("small", {}, chart.note)), host));
      drawn.push({ chart, lines, host, plot: null });
    }
    const diagram = group.startsWith("The value model") ? calibration() : null;
    if (diagram) grid.append(diagram);
    if (!grid.children.length) continue;
    if (group === DATA.charts[0][0]) first.append(grid);
    else rest.append(el("h3", {}, group), grid);
  }
  draw();
  ON_SCHEME.push(draw);
  let known = first.clientWidth;
  new ResizeObserver(() => {
    if (first.clientWidth === known) return;
    known = first.clientWidth;
    draw();
  }).observe(first);
})();
