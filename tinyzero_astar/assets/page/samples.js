"use strict";
// The recorded completions, filtered by whether they are right, by iteration and by what they contain.

(function () {
  const place = document.getElementById("sample-list");
  if (!place) return;
  const PAGE = 24, EACH = 3; // shown at first of one iteration, and of each of several
  const all = DATA.runs.flatMap((run, index) => run.samples.map((s) => ({ ...s, run: index })));
  const lost = DATA.runs.reduce((sum, run) => sum + run.numSamples - run.samples.length, 0);
  const iterations = [...new Set(all.map((s) => s.iteration))].sort((a, b) => a - b);
  const state = { run: 0, verdict: 0, iteration: 0, words: "", pages: 1 };
  const list = el("div", { className: "samples" });
  const count = el("p", { className: "count", role: "status", id: "found" });
  const more = el("button", { type: "button", onclick: () => { state.pages += 1; show(); } }, "Show more");
  const words = el("input", { type: "search", "aria-label": "Containing", placeholder: "any text", oninput: () => set({ words: words.value }) });

  function set(change) {
    Object.assign(state, change, { pages: 1 });
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
      el("span", { className: right ? "verdict right" : "verdict wrong" }, right ? "✓ right answer" : "✗ wrong"),
      el("b", { className: "code" }, visible(String(s.problem))),
    ];
    if (DATA.runs.length > 1) head.push(el("span", {}, DATA.runs[s.run].name));
    const told = [right ? null : visible(String(s.reason)), right ? null : "answer " + visible(String(s.answer)), s.weight === null ? null : "weight " + short(s.weight)];
    const text = el("pre", {}, visibleLines(String(s.completion)) || "(nothing)");
    const cut = s.cut ? el("small", {}, `… ${s.cut.toLocaleString("en")} more characters`) : null;
    return el("article", { className: "sample" }, el("header", {}, ...head), text, cut, el("small", {}, told.filter(Boolean).join(" · ")));
  }

  // What all completions of an iteration say of the policy, by their weights. Not of some of them, nor of several runs.
  function policy(iteration) {
    if (DATA.runs.length > 1 || state.verdict !== 0 || state.words) return "";
    const run = DATA.runs[0], estimates = run.metrics["rollout/policy_accuracy"];
    const known = estimates ? estimates[run.iterations.indexOf(iteration)] : null;
    return known === null || known === undefined ? "" : `. By their weights the policy is right in ${percent(Math.min(1, known))}`;
  }

  // Of several iterations some cards of each: of different problems, a right one among them where there is one.
  function some(own, most) {
    if (own.length <= most) return own;
    const seen = new Map(), turn = new Map(own.map((s) => {
      const times = seen.get(s.problem) ?? 0;
      seen.set(s.problem, times + 1);
      return [s, times];
    }));
    const spread = [...own].sort((a, b) => turn.get(a) - turn.get(b)), first = spread.slice(0, most);
    const good = spread.find((s) => s.accuracy);
    if (good && !first.some((s) => s.accuracy)) first[most - 1] = good;
    return first;
  }

  function show() {
    const found = chosen(), right = found.filter((s) => s.accuracy).length;
    const most = state.pages * (state.iteration === 0 ? EACH : PAGE);
    more.hidden = true;
    list.replaceChildren();
    for (const iteration of iterations) {
      const own = found.filter((s) => s.iteration === iteration);
      if (!own.length) continue;
      const good = own.filter((s) => s.accuracy).length;
      list.append(el("h3", {}, `Iteration ${iteration}: ${good} of ${own.length} right` + policy(iteration)),
        el("div", { className: "cards" }, ...some(own, most).map(card)));
      if (own.length > most) more.hidden = false;
    }
    if (!found.length) list.append(el("p", {}, "No completion matches. Choose “right and wrong” and all iterations, and clear the words, to see all."));
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
  const everything = `All that the searches of ${iterations.length === 1 ? "1 iteration" : iterations.length + " iterations"} found, not only the searches of the tree above.`;
  place.append(el("p", { className: "count" }, everything + " “Right” is the answer’s verdict. The verifier does not read the working, which may be wrong all the same. At first a few cards of each iteration are shown, of different problems. The weight is the probability of a completion under the policy, divided by the probability that the search finds it."), filters, count, list, more);
  show();
})();
