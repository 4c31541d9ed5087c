"use strict";
// A recorded search as a tree: what is known of every prefix, chains as segments, and where each is drawn.

const STATUS = ["expanded", "leaf", "open", "dropped"];
const ROW = 26, GAP = 26, LABEL = 8, MARK = 14, END = 170, SHORT_END = 90; // of the drawing, in pixels

const MODES = {
  gumbel: "In each step every prefix on the list gets one more token, and those with the largest G stay.",
  best_first: "In each step the open prefix with the largest f = g + h is extended by one token.",
  sample: "Every completion is sampled on its own. Nothing is compared.",
};

// What the letters of a search mean, for the reader who opens that.
const LETTERS = [
  ["π, g", "π is the probability of a prefix under the policy, and g its logarithm. It is 0 at the prompt and falls with every token. The unit of all scores is the nat, that of natural logarithms."],
  ["success", "The value model's guess of how likely a completion of this prefix by the policy is right."],
  ["h", "What the value model adds to g. h = log(1 + success · (e^(1/β) − 1)). That is 0 where success is 0 %, and 1/β where it is 100 %. With a positive 1/β the search prefers success. With a negative one it looks for failures, so that sure success has the lowest h. In training 1/β is log((1 − p) / p) of the success p at the prompt, within bounds. It is negative for problems that the policy mostly solves, since there a failure tells more than one more success."],
  ["f", "g + h. It may be positive, as h may be larger than what g has lost."],
  ["G", "What mode gumbel orders by. Each token is drawn from a proposal, which is the policy bent towards a large f of the next prefix. G is the logarithm of that proposal plus random noise, and the noise makes the choice a sample without replacement. Where the value model does not guide, the proposal is the policy, and h and f play no part."],
  ["left out", "Other prefixes had a larger G (or f), and there is room for so many alone. Where all prefixes of a problem were left out, it gets no completion in this iteration."],
  ["κ, ŵ", "κ is the G of the best prefix that was left out. The weight ŵ of a completion is its probability π divided by the probability that its G exceeds κ. Weights make up for what the search prefers, and the update uses them."],
];

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
      const nodes = item.data.nodes; // there is room for a mark before what ends in a completion
      const mark = nodes.length && this.leaf.has(nodes[nodes.length - 1]) ? MARK : 0;
      item.left = item.parent ? item.parent.right + GAP + mark : LABEL;
      item.at = [item.left];
      for (const n of nodes) item.at.push(item.at[item.at.length - 1] + measure(this.label(n)));
      item.right = item.at[item.at.length - 1];
      right = Math.max(right, item.right);
    });
    return { root, items: root.descendants(), width: right + (this.trace.leaves.some((leaf) => leaf.weight !== null) ? END : SHORT_END), height: bottom - top + 2 * ROW };
  }

  // What the search was and what it found, in sentences, of all problems or of one.
  summary({ hasValue, isGuided, numProblems, problem }) {
    const trace = this.trace, isOne = problem !== null;
    const own = trace.leaves.filter((leaf) => !isOne || this.problem[leaf.node] === problem);
    const right = own.filter((leaf) => leaf.accuracy), rare = right.filter((leaf) => this.mass[leaf.node] < 0.05).length;
    const kappa = [...new Set(trace.problems.filter((p, i) => !isOne || i === problem).map((p) => p.kappa).filter((k) => k !== null))];
    const parts = [this.scope(numProblems), MODES[trace.mode] ?? ""];
    if (trace.mode !== "sample" && isGuided !== null) parts.push(isGuided ? "The value model guided it." : "The value model did not guide it yet, so h played no part.");
    if (trace.leaves.length) {
      const found = (own.length === 1 ? "1 completion" : own.length + " completions") + (isOne ? " of this problem" : "");
      parts.push(`It found ${found}, ${right.length} right` + (rare ? `, ${rare} of these with a probability below 5 % under the policy.` : "."));
      const without = trace.problems.length - new Set(own.map((leaf) => this.problem[leaf.node])).size;
      if (!isOne && without) parts.push(`${without} of its ${trace.problems.length} problems got none, as all their prefixes were left out.`);
    }
    if (kappa.length) parts.push(`κ = ${kappa.slice(0, 4).map(short).join(", ")}.`);
    if (trace.numNodes > this.count) parts.push(`${this.count.toLocaleString("en")} of ${trace.numNodes.toLocaleString("en")} prefixes are recorded, the best.`);
    if (!hasValue) parts.push("The value model was never trained. What it says of success means nothing.");
    return parts.filter(Boolean).join(" ");
  }

  // Which searches of an iteration these are, where that is known.
  scope(numProblems) {
    const { problems, shared } = this.trace;
    if (!Number.isInteger(numProblems) || !(shared > 0) || numProblems <= problems.length) return "";
    const number = Math.ceil(numProblems / shared), shown = Math.ceil(problems.length / shared);
    const what = shown === 1 ? "This is the first" : `These are the first ${shown}`;
    return `${what} of the ${number} searches of this iteration. Of the other${number - shown === 1 ? "" : "s"} no tree is recorded.`;
  }

  // What is known of a prefix: names, values, and what they mean.
  facts(n) {
    const { nodes, mode } = this.trace, leaf = this.leaf.get(n);
    const tilt = this.trace.tilts[this.problem[n]];
    const facts = [
      ["g", short(nodes.g[n]), "log-probability so far, nats"],
      ["h", short(nodes.h[n]), `from 0 (sure failure) to ${short(tilt)} (sure success)`],
      ["f", short(nodes.g[n] + nodes.h[n]), "g + h"],
      ["success", percent(nodes.success[n]), "as the value model foresees it"], ["π", percent(this.mass[n]), "probability under the policy"],
      ["step", nodes.step[n] + (nodes.end[n] < 0 ? "" : " to " + nodes.end[n]), "on the list"],
    ];
    if (mode === "gumbel") facts.splice(3, 0, ["G", short(nodes.priority[n]), "log-probability under the proposal, with noise"]);
    if (leaf) {
      facts.push(["reward", short(leaf.reward), visible(String(leaf.reason))]);
      if (leaf.weight !== null) facts.push(["weight", short(leaf.weight), "in the update"]);
    }
    return facts;
  }
}
