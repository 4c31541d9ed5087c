"use strict";
// The recorded completions, filtered by whether they are right, by iteration and by what they contain.

(function () {
  const place = document.getElementById("sample-list");
  if (!place) return;
  const PAGE = 24;
  const all = DATA.runs.flatMap((run, index) => run.samples.map((s) => ({ ...s, run: index })));
  const lost = DATA.runs.reduce((sum, run) => sum + run.numSamples - run.samples.length, 0);
  const iterations = [...new Set(all.map((s) => s.iteration))].sort((a, b) => a - b);
  const state = { run: 0, verdict: 0, iteration: 0, words: "", most: PAGE };
  const list = el("div", { className: "samples" });
  const count = el("p", { className: "count", role: "status" });
  const more = el("button", { type: "button", onclick: () => { state.most += PAGE; show(); } }, "Show more");
  const words = el("input", { type: "search", "aria-label": "Containing", placeholder: "any text", oninput: () => set({ words: words.value }) });

  function set(change) {
    Object.assign(state, change, { most: PAGE });
    show();
  }

  function chosen() {
    return all.filter((s) => (state.run === 0 || s.run === state.run - 1)
      && (state.verdict === 0 || Boolean(s.accuracy) === (state.verdict === 1))
      && (state.iteration === 0 || s.iteration === iterations[state.iteration - 1])
      && (!state.words || (s.completion + "\n" + s.problem).includes(state.words)));
  }

  function card(s) {
    const right = Boolean(s.accuracy);
    const head = [
      el("span", { className: right ? "verdict right" : "verdict wrong" }, right ? "✓ right" : "✗ wrong"),
      el("b", { className: "code" }, visible(String(s.problem))),
      el("span", {}, "iteration " + s.iteration),
    ];
    if (DATA.runs.length > 1) head.push(el("span", {}, DATA.runs[s.run].name));
    const told = [right ? null : visible(String(s.reason)), right ? null : "answer " + visible(String(s.answer)), s.weight === null ? null : "weight " + short(s.weight)];
    const text = el("pre", {}, visibleLines(String(s.completion)) || "(nothing)");
    const cut = s.cut ? el("small", {}, `… ${s.cut.toLocaleString("en")} more characters`) : null;
    return el("article", { className: "sample" }, el("header", {}, ...head), text, cut, el("small", {}, told.filter(Boolean).join(" · ")));
  }

  function show() {
    const found = chosen(), right = found.filter((s) => s.accuracy).length;
    list.replaceChildren(...found.slice(0, state.most).map(card));
    more.hidden = found.length <= state.most;
    count.textContent = `${found.length.toLocaleString("en")} completions, ${right.toLocaleString("en")} right`
      + (lost ? `. ${lost.toLocaleString("en")} more are in samples.jsonl` : "");
  }

  const filters = el("div", { className: "controls" },
    choice("Show", ["right and wrong", "right", "wrong"], 0, (i) => set({ verdict: i })),
    choice("Iteration", ["all", ...iterations.map(String)], 0, (i) => set({ iteration: i })),
    el("label", { className: "pick" }, "Containing ", words));
  if (DATA.runs.length > 1) filters.append(choice("Run", ["all runs", ...DATA.runs.map((run) => run.name)], 0, (i) => set({ run: i })));
  if (!all.length) {
    place.append(el("p", {}, "No completions were recorded."));
    return;
  }
  place.append(filters, count, list, more);
  show();
})();
