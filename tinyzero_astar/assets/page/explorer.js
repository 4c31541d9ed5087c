"use strict";
// The search explorer: the tree as the search grew it, step by step, with the open list beside it.

(function () {
  const place = document.getElementById("explorer");
  const searches = DATA.runs.flatMap((run, index) => run.traces.map((trace) => ({ trace, run: index, hasValue: run.hasValue })));
  if (!searches.length) {
    place.append(el("p", {}, "No search was recorded."));
    return;
  }
  const NAMES = { gumbel: "G", best_first: "f", sample: "g" };
  const SHOWN_OPEN = 40;
  const ofFirst = DATA.runs.find((run) => run.traces.length).traces.length; // the middle search of the first run that has some
  const state = { search: Math.floor((ofFirst - 1) / 2), problem: 0, step: 0, colours: 0, dropped: true, node: -1 };
  let tree, drawing, timer = 0;

  // ------------------------------------------------------------------------------------------------ what is there
  const canvas = document.createElement("canvas").getContext("2d");
  const widths = new Map();
  function measure(text) {
    if (!widths.has(text)) widths.set(text, canvas.measureText(text).width);
    return widths.get(text);
  }

  const controls = el("div", { className: "controls" });
  const slider = el("input", { type: "range", min: 0, step: 1, id: "step", "aria-label": "step of the search" });
  const play = el("button", { type: "button", id: "play" }, "▶ Play");
  const told = el("output", { htmlFor: "step", className: "told" });
  const replay = el("div", { className: "replay" }, play, slider, told);
  const note = el("p", { className: "count" });
  const board = svg("svg", { class: "tree", tabindex: 0, role: "application", "aria-label": "Search tree. Arrow keys go from prefix to prefix." });
  const scroller = el("div", { className: "scroller" }, board);
  const list = el("ol", { className: "open-list" });
  const openTitle = el("h3");
  const detail = el("div", { className: "detail", id: "detail", role: "status", "aria-live": "polite" });
  const scale = el("div", { className: "scale" });
  const wide = el("p", { className: "count wide-tree" }, "The tree goes on to the right. Scroll it sideways, or go along it with the arrow keys.");
  const letters = el("details", { className: "letters" }, el("summary", {}, "What g, h, f, G, κ, ŵ and “left out” mean"),
    el("dl", {}, ...LETTERS.map(([name, meaning]) => el("div", {}, el("dt", {}, name), el("dd", {}, meaning)))));
  place.append(note, letters, controls, replay, el("div", { className: "stage" },
    el("div", { className: "stage-tree" }, scroller, wide, scale),
    el("aside", {}, el("h3", {}, "This prefix"), detail, openTitle, list)));

  // ---------------------------------------------------------------------------------------------------- the choice
  function begin() {
    const trace = searches[state.search].trace;
    tree = new SearchTree(trace);
    state.problem = 0;
    state.step = trace.mode === "best_first" ? tree.lastStep : Math.floor(tree.lastStep / 2); // where there is something to see
    state.node = -1;
    const many = tree.trace.mode === "best_first" && tree.trace.nodes.status.filter((s) => STATUS[s] === "dropped").length > 60;
    state.dropped = !many;
    state.colours = searches[state.search].hasValue ? 0 : 1; // a value model that nobody trained knows nothing of success
    slider.max = tree.lastStep;
    slider.value = state.step;
    controls.replaceChildren();
    if (searches.length > 1) {
      const several = DATA.runs.length > 1;
      controls.append(choice("Search of", searches.map((s) => (several ? DATA.runs[s.run].name + ", " : "") + "iteration " + s.trace.iteration), state.search, (i) => { state.search = i; begin(); }));
    }
    if (trace.problems.length > 1) {
      controls.append(choice("Problem", [`all ${trace.problems.length}`, ...trace.problems.map((p) => brief(p.problem))], 0, (i) => { state.problem = i; state.node = -1; tell(); draw(); }));
    }
    controls.append(choice("Colour", ["success probability", "f"], state.colours, (i) => { state.colours = i; draw(); }));
    const box = el("input", { type: "checkbox", checked: state.dropped, onchange: () => { state.dropped = box.checked; draw(); } });
    controls.append(el("label", { className: "pick" }, box, " what was left out"));
    tell();
    draw();
  }

  function tell() {
    const { run, hasValue, trace } = searches[state.search], { metrics, iterations, numProblems, numTraces, traces } = DATA.runs[run];
    const open = metrics && metrics["guidance/is_open"] ? metrics["guidance/is_open"][iterations.indexOf(trace.iteration)] : null;
    const isGuided = open === null || open === undefined ? null : open === 1;
    const problem = state.problem === 0 ? null : state.problem - 1;
    const fewer = numTraces > traces.length ? ` This page has ${traces.length} of the ${numTraces} recorded iterations, for lack of room.` : "";
    note.textContent = tree.summary({ hasValue, isGuided, numProblems, problem }) + fewer;
  }

  // --------------------------------------------------------------------------------------------------- the drawing
  function draw() {
    canvas.font = "12.5px " + colour("--mono");
    const { nodes } = tree.trace;
    const problems = state.problem === 0 ? null : new Set([state.problem - 1]);
    const isShown = (n) => state.dropped || tree.death[n] === Infinity;
    const layout = tree.layout(problems, isShown, measure);
    const links = svg("g"), marks = svg("g");
    const f = nodes.g.map((g, n) => g + nodes.h[n]), low = Math.min(...f), high = Math.max(...f, low + 1e-9);
    drawing = { layout, cells: new Map(), segments: [], segmentOf: new Map(), order: [], known: new Int8Array(tree.count).fill(-1), low, high };
    board.setAttribute("viewBox", `0 0 ${layout.width} ${layout.height}`);
    board.setAttribute("width", layout.width);
    board.setAttribute("height", layout.height);
    for (const item of layout.items) {
      const own = item.data.nodes, segment = { own, link: null, text: null, end: null, mark: null };
      const isMarked = own.length > 0 && !item.children && tree.leaf.has(own[own.length - 1]);
      if (item.parent && own.length) {
        const x0 = item.parent.right + 2, x1 = item.left - 3, middle = (x0 + x1) / 2;
        const [y0, y1] = [item.parent.row + 5, item.row + 5];
        const path = svg("path", { d: `M${x0} ${y0}C${middle} ${y0} ${middle} ${y1} ${x1} ${y1}`, class: "link", "stroke-width": thickness(own[0]) });
        path.style.stroke = paint(own[0]);
        links.append(path);
        segment.link = path;
      }
      own.forEach((n, i) => {
        const cell = svg("g", { class: "cell", "data-n": n });
        const width = Math.max(1, item.at[i + 1] - item.at[i]), thick = thickness(n);
        cell.append(svg("rect", { x: item.at[i], y: item.row - 12, width, height: ROW - 4, class: "hit" }));
        const bar = svg("rect", { x: item.at[i], y: item.row + 5 - thick / 2, width, height: thick, class: "bar" });
        bar.style.fill = paint(n);
        cell.append(bar);
        marks.append(cell);
        drawing.cells.set(n, cell);
        drawing.order.push(n);
      });
      if (own.length) {
        const isRoot = nodes.parent[own[0]] < 0;
        const text = svg("text", { x: item.left, y: item.row - 1, class: isRoot ? "words question" : "words" });
        marks.append(text);
        segment.text = text;
        drawing.segments.push(segment);
        for (const n of own) drawing.segmentOf.set(n, segment);
        if (!item.children) {
          const end = svg("text", { x: item.right + 8, y: item.row + 2, class: "end" });
          marks.append(end);
          segment.end = end;
          if (isMarked) {
            segment.mark = svg("text", { x: item.left - MARK, y: item.row - 1 });
            marks.append(segment.mark);
          }
        }
      }
    }
    board.replaceChildren(links, marks);
    wide.hidden = layout.width <= scroller.clientWidth + 1;
    legend();
    show();
    if (layout.root.data.nodes.length) scroller.scrollTop = layout.root.row - scroller.clientHeight / 2;
    if (state.node >= 0) mark(state.node, true);
    else describe(-1);
  }

  function thickness(n) {
    return 1.5 + 6.5 * Math.min(1, tree.mass[n]);
  }

  // Orange is failure, blue is success: told apart without seeing red or green.
  function paint(n) {
    const mix = (to, from, share) => `color-mix(in oklab, var(${to}) ${(100 * share).toFixed(1)}%, var(${from}))`;
    if (state.colours === 1) {
      const f = tree.trace.nodes.g[n] + tree.trace.nodes.h[n];
      return mix("--f-high", "--f-low", (f - drawing.low) / (drawing.high - drawing.low));
    }
    const p = tree.trace.nodes.success[n];
    return p < 0.5 ? mix("--mid", "--bad", 2 * p) : mix("--good", "--mid", 2 * p - 1);
  }

  function legend() {
    const bar = el("i", { className: state.colours ? "by-f" : "by-success" });
    const ends = state.colours ? [short(drawing.low), short(drawing.high)] : ["0 %", "100 %"];
    scale.replaceChildren(el("span", {}, state.colours ? "f " + ends[0] : "success 0 %"), bar, el("span", {}, ends[1]),
      el("span", {}, " · thick: likely under the policy · ✓ right answer, ✗ wrong · faint: left out · dashed: open"));
  }

  // ------------------------------------------------------------------------------------------------- the step shown
  const CLASSES = ["later", "open", "extended", "done", "gone"];
  function show() {
    const changed = new Set();
    for (const [n, cell] of drawing.cells) {
      const now = tree.state(n, state.step);
      if (now === drawing.known[n]) continue;
      drawing.known[n] = now;
      cell.setAttribute("class", "cell " + CLASSES[now] + (n === state.node ? " chosen" : ""));
      changed.add(drawing.segmentOf.get(n));
    }
    for (const { own, link, text, end, mark } of changed) {
      const there = own.filter((n) => drawing.known[n] > 0), last = own[own.length - 1], leaf = tree.leaf.get(last);
      if (link) link.setAttribute("class", "link " + CLASSES[drawing.known[own[0]]]);
      text.textContent = there.map((n) => tree.label(n)).join("");
      text.classList.toggle("gone", there.length > 0 && drawing.known[there[there.length - 1]] === 4);
      if (!end) continue;
      end.textContent = drawing.known[last] > 0 ? ending(last) : "";
      const verdict = leaf && drawing.known[last] === 3 ? (leaf.accuracy ? " yes" : " no") : "";
      end.setAttribute("class", "end" + verdict);
      if (!mark) continue;
      mark.textContent = verdict ? (leaf.accuracy ? "✓" : "✗") : "";
      mark.setAttribute("class", "mark" + verdict);
    }
    slider.setAttribute("aria-valuetext", `step ${state.step} of ${tree.lastStep}`);
    showOpen();
  }

  function ending(n) {
    const leaf = tree.leaf.get(n), now = drawing.known[n];
    if (now === 4) return "left out";
    if (now === 1) return "open";
    if (now === 2) return "";
    if (!leaf) return "completion";
    const parts = [leaf.accuracy ? "✓" : "✗", ...(leaf.weight === null ? [] : ["ŵ " + short(leaf.weight), "·"])];
    return parts.join(" ") + " π " + percent(tree.mass[n]);
  }

  function showOpen() {
    const { nodes, mode } = tree.trace;
    const counts = [0, 0, 0, 0, 0], open = [];
    for (let n = 0; n < tree.count; n++) {
      if (state.problem && tree.problem[n] !== state.problem - 1) continue;
      const now = tree.state(n, state.step);
      const isOpen = nodes.step[n] <= state.step && !tree.isLeaf(n) && (nodes.end[n] < 0 || nodes.end[n] > state.step);
      counts[isOpen ? 1 : now]++;
      if (isOpen) open.push(n);
    }
    open.sort((a, b) => nodes.priority[b] - nodes.priority[a]);
    const name = NAMES[mode] ?? "priority";
    told.textContent = `step ${state.step} of ${tree.lastStep}: ${open.length} open, ${counts[3]} finished`;
    openTitle.textContent = open.length ? `Open list, largest ${name} first` : "Open list: empty";
    list.replaceChildren(...open.slice(0, SHOWN_OPEN).map((n) => {
      const written = visible(tree.written(n));
      const tail = written.length > 34 ? "…" + written.slice(-33) : written;
      const who = tree.trace.problems.length > 1 ? brief(tree.trace.problems[tree.problem[n]].problem, 16) + " " : "";
      return el("li", {}, el("button", { type: "button", onclick: () => mark(n, true) },
        el("span", { className: "value" }, nodes.priority[n].toFixed(2)), el("span", { className: "code" }, who + (tail || "(the prompt)"))));
    }));
    if (open.length > SHOWN_OPEN) list.append(el("li", { className: "rest" }, `and ${open.length - SHOWN_OPEN} more`));
  }

  // What a step of best_first is about: the prefix that it extends.
  function follow() {
    const { nodes, mode } = tree.trace;
    if (mode !== "best_first") return;
    const n = nodes.end.findIndex((end, i) => end === state.step && STATUS[nodes.status[i]] === "expanded" && drawing.cells.has(i));
    if (n >= 0) mark(n, true);
  }

  // ------------------------------------------------------------------------------------------------ one prefix told
  function mark(n, isScrolled) {
    const before = drawing.cells.get(state.node), now = drawing.cells.get(n);
    if (before) before.classList.remove("chosen");
    state.node = n;
    if (now) {
      now.classList.add("chosen");
      if (isScrolled) {
        const box = now.querySelector("rect");
        const x = Number(box.getAttribute("x")), y = Number(box.getAttribute("y"));
        if (x < scroller.scrollLeft + 40 || x > scroller.scrollLeft + scroller.clientWidth - 80) scroller.scrollLeft = x - scroller.clientWidth / 2;
        if (y < scroller.scrollTop + 20 || y > scroller.scrollTop + scroller.clientHeight - 50) scroller.scrollTop = y - scroller.clientHeight / 2;
      }
    }
    describe(n);
  }

  function describe(n) {
    if (n < 0) {
      detail.replaceChildren(el("p", { className: "count" }, "Point at a piece of the tree, or go to it with Tab and the arrow keys."));
      return;
    }
    const problem = tree.trace.problems[tree.problem[n]], facts = tree.facts(n);
    detail.replaceChildren(
      el("dl", {}, ...facts.map(([name, value, meaning]) => el("div", {}, el("dt", {}, name), el("dd", {}, value, el("small", {}, meaning))))),
      el("pre", {}, el("span", { className: "prompt" }, visibleLines(String(problem.prompt ?? ""))), visibleLines(tree.written(n))));
  }

  // ---------------------------------------------------------------------------------------------------- the reader
  const nodeAt = (event) => event.target.closest ? event.target.closest(".cell") : null;
  board.addEventListener("pointerover", (event) => { const cell = nodeAt(event); if (cell) mark(Number(cell.dataset.n)); });
  board.addEventListener("click", (event) => { const cell = nodeAt(event); if (cell) mark(Number(cell.dataset.n)); });
  board.addEventListener("focus", () => { if (state.node < 0 && drawing.order.length) mark(drawing.order[0], true); });
  board.addEventListener("keydown", (event) => {
    const there = drawing.order.filter((n) => drawing.known[n] > 0);
    const n = state.node < 0 ? there[0] : state.node, nodes = tree.trace.nodes;
    const drawn = (m) => drawing.cells.has(m) && drawing.known[m] > 0;
    const best = (all) => all.filter(drawn).sort((a, b) => nodes.priority[b] - nodes.priority[a]);
    const rowOf = (m) => Number(drawing.cells.get(m).querySelector("rect").getAttribute("y"));
    let to = -1;
    if (event.key === "ArrowRight") to = best(tree.children[n])[0] ?? -1;
    else if (event.key === "ArrowLeft") to = nodes.parent[n];
    else if (event.key === "Home") to = there[0];
    else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      const sign = event.key === "ArrowDown" ? 1 : -1, x = Number(drawing.cells.get(n).querySelector("rect").getAttribute("x"));
      let least = Infinity;
      for (const m of there) {
        const dy = sign * (rowOf(m) - rowOf(n));
        if (dy <= 1) continue;
        const far = dy * 10 + Math.abs(Number(drawing.cells.get(m).querySelector("rect").getAttribute("x")) - x);
        if (far < least) [least, to] = [far, m];
      }
    } else return;
    event.preventDefault();
    if (to >= 0 && drawing.cells.has(to)) mark(to, true);
  });
  slider.addEventListener("input", () => { stop(); state.step = Number(slider.value); show(); follow(); });
  play.addEventListener("click", () => {
    if (timer) return stop();
    if (state.step >= tree.lastStep) state.step = -1;
    play.textContent = "❚❚ Pause";
    timer = setInterval(() => {
      state.step += 1;
      slider.value = state.step;
      show();
      follow();
      if (state.step >= tree.lastStep) stop();
    }, Math.max(60, Math.min(500, 12000 / (tree.lastStep + 1))));
  });
  function stop() {
    clearInterval(timer);
    timer = 0;
    play.textContent = "▶ Play";
  }
  begin();
})();
