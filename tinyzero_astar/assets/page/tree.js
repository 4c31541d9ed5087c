"use strict";
// A recorded search as a tree: what is known of every prefix, chains as segments, and where each is drawn.

const STATUS = ["expanded", "leaf", "open", "dropped"];
const ROW = 26, GAP = 26, LABEL = 8; // of the drawing, in pixels

const MODES = {
  gumbel: "In each step every prefix on the list gets one more token, and the best stay, by G. That is the log-probability under the proposal with noise, which makes the choice a sample without replacement. Where the value model guides, the proposal is the policy bent towards its h.",
  best_first: "In each step the open prefix with the largest f = g + h is extended by one token.",
  sample: "Every completion is sampled on its own. Nothing is compared.",
};

// Everything that is known of the prefixes of a search, by their number.
class SearchTree {
  constructor(trace) {
    this.trace = trace;
    const { parent, step, end, status, g, text } = trace.nodes;
    const count = (this.count = parent.length);
    this.children = Array.from({ length: count }, () => []);
    this.problem = new Int32Array(count);
    this.roots = [];
    for (let n = 0; n < count; n++) {
      if (parent[n] < 0) {
        this.problem[n] = trace.nodes.problem[this.roots.length];
        this.roots.push(n);
      } else {
        this.problem[n] = this.problem[parent[n]];
        this.children[parent[n]].push(n);
      }
    }
    this.leaf = new Map(trace.leaves.map((leaf) => [leaf.node, leaf]));
    this.lastStep = Math.max(0, ...step, ...end);
    // when all that a prefix led to was pushed out: never for what ends in a completion or stayed open
    this.death = new Float64Array(count);
    for (let n = count - 1; n >= 0; n--) {
      const own = end[n] < 0 ? Infinity : end[n];
      this.death[n] = this.children[n].length ? Math.max(...this.children[n].map((c) => this.death[c])) : own;
    }
    this.words = trace.texts.map(visible);
    this.mass = g.map(Math.exp);
  }

  label(n) {
    const { parent, text } = this.trace.nodes;
    return parent[n] < 0 ? brief(this.trace.problems[this.problem[n]].problem) : this.words[text[n]];
  }

  // All that the model had written up to and with a prefix.
  written(n) {
    const { parent, text } = this.trace.nodes, parts = [];
    for (; parent[n] >= 0; n = parent[n]) parts.push(this.trace.texts[text[n]]);
    return parts.reverse().join("");
  }

  isLeaf(n) {
    return STATUS[this.trace.nodes.status[n]] === "leaf";
  }

  // 0 not yet generated, 1 open, 2 extended, 3 a completion, 4 pushed out with all that it led to
  state(n, step) {
    const nodes = this.trace.nodes;
    if (nodes.step[n] > step) return 0;
    if (this.death[n] <= step) return 4;
    if (this.isLeaf(n)) return 3;
    return nodes.end[n] < 0 || nodes.end[n] > step ? 1 : 2;
  }

  // Chains without a fork as segments with their own children; the best first.
  segments(problems, isShown) {
    const { priority, g } = this.trace.nodes;
    const below = (n) => this.children[n].filter(isShown).sort((a, b) => priority[b] - priority[a] || g[b] - g[a]);
    const grow = (first) => {
      const nodes = [first];
      let next = below(first);
      if (this.trace.nodes.parent[first] >= 0) {
        while (next.length === 1) {
          nodes.push(next[0]);
          next = below(next[0]);
        }
      }
      return { nodes, next };
    };
    // by hand, not by recursion: a completion may fork at every token
    const make = (first) => { const s = grow(first); return { nodes: s.nodes, next: s.next, children: [] }; };
    const tops = this.roots.filter((r) => problems === null || problems.has(this.problem[r])).map(make), stack = [...tops];
    while (stack.length) {
      const segment = stack.pop();
      segment.children = segment.next.map(make);
      stack.push(...segment.children);
    }
    return tops.length === 1 ? tops[0] : { nodes: [], children: tops };
  }

  // The segments with their places: every path has a row of its own, and text stands where it was written.
  layout(problems, isShown, measure) {
    const root = d3.hierarchy(this.segments(problems, isShown));
    d3.cluster().nodeSize([ROW, 1]).separation(() => 1)(root); // x is across the rows
    let top = Infinity, bottom = -Infinity, right = 0;
    root.each((item) => {
      top = Math.min(top, item.x);
      bottom = Math.max(bottom, item.x);
    });
    root.eachBefore((item) => {
      item.row = item.x - top + ROW;
      item.left = item.parent ? item.parent.right + GAP : LABEL;
      item.at = [item.left];
      for (const n of item.data.nodes) item.at.push(item.at[item.at.length - 1] + measure(this.label(n)));
      item.right = item.at[item.at.length - 1];
      right = Math.max(right, item.right);
    });
    return { root, items: root.descendants(), width: right + 250, height: bottom - top + 2 * ROW };
  }

  // What the search was and what it found, in sentences.
  summary(hasValue) {
    const trace = this.trace;
    const right = trace.leaves.filter((leaf) => leaf.accuracy), rare = right.filter((leaf) => this.mass[leaf.node] < 0.05).length;
    const kappa = [...new Set(trace.problems.map((p) => p.kappa).filter((k) => k !== null))];
    const parts = [MODES[trace.mode] ?? ""];
    if (trace.leaves.length) {
      const found = trace.leaves.length === 1 ? "1 completion" : trace.leaves.length + " completions";
      parts.push(`It found ${found}, ${right.length} right` + (rare ? `, ${rare} of these with a probability below 5 % under the policy.` : "."));
    }
    if (kappa.length) parts.push(`κ = ${kappa.slice(0, 4).map(short).join(", ")} is the G of the best prefix that was left out. A completion's weight is its probability divided by the probability that its G exceeds κ.`);
    if (trace.numNodes > this.count) parts.push(`${this.count.toLocaleString("en")} of ${trace.numNodes.toLocaleString("en")} prefixes are recorded, the best.`);
    if (!hasValue) parts.push("The value model was never trained. What it says of success means nothing.");
    return parts.join(" ");
  }

  // What is known of a prefix: names, values, and what they mean.
  facts(n) {
    const { nodes, mode } = this.trace, leaf = this.leaf.get(n);
    const facts = [
      ["g", short(nodes.g[n]), "log-probability so far"], ["h", short(nodes.h[n]), "what the value model adds"],
      ["f", short(nodes.g[n] + nodes.h[n]), "g + h"],
      ["success", percent(nodes.success[n]), "as the value model foresees it"], ["π", percent(this.mass[n]), "probability under the policy"],
      ["step", nodes.step[n] + (nodes.end[n] < 0 ? "" : " to " + nodes.end[n]), "on the list"],
    ];
    if (mode === "gumbel") facts.splice(3, 0, ["G", short(nodes.priority[n]), "what the search ordered by"]);
    if (leaf) {
      facts.push(["reward", short(leaf.reward), visible(String(leaf.reason))]);
      if (leaf.weight !== null) facts.push(["weight", short(leaf.weight), "in the update"]);
    }
    return facts;
  }
}
