// A flower: one petal a label, whose area is the label's probability.
//
// In:  labels and {label: probability}, or no probabilities for a flower that has not opened yet.
// Out: an SVG element. Each petal has its own colour, pattern and, where named, its label.

const SVG = "http://www.w3.org/2000/svg";
const LENGTH = 122; // of a petal of probability 1, in the units of the viewBox
const CORE = 17;
// page.css gives each of these a colour, PATTERNS a pattern.
const FEELINGS = { 기쁨: "joy", 당황: "fluster", 분노: "anger", 불안: "worry", 상처: "hurt", 슬픔: "sorrow" };
const PATTERNS = {
  joy: ["circle", { cx: 7, cy: 7, r: 2.2 }],
  fluster: ["path", { d: "M3 3l8 8M11 3l-8 8" }],
  anger: ["path", { d: "M0 7l7-7l7 7M0 14l7-7l7 7" }],
  worry: ["path", { d: "M0 7q3.5-6 7 0t7 0" }],
  hurt: ["path", { d: "M-2 16L16-2M-2 2L2-2M12 16l4-4" }],
  sorrow: ["path", { d: "M0 4h14M0 11h14" }],
};

/** The label's name in page.css: its own for the six feelings, one in turn for any other label. */
export function feeling(label, labels) {
  const names = Object.values(FEELINGS);
  return FEELINGS[label] ?? names[Math.max(labels.indexOf(label), 0) % names.length];
}

/** A probability in words that never claim certainty. */
export function percent(probability) {
  if (probability < 0.01) return "1% 미만";
  if (probability > 0.99) return "99% 이상";
  return `${Math.round(probability * 100)}%`;
}

function element(name, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The gradients and patterns that all flowers of the page share; put it into the page once. */
export function paints() {
  const made = element("svg", { class: "paints", "aria-hidden": "true", width: 0, height: 0 });
  for (const [name, [shape, attributes]] of Object.entries(PATTERNS)) {
    made.append(
      element("linearGradient", { id: `petal-${name}`, class: name },
        element("stop", { offset: 0, class: "deep" }), element("stop", { offset: 1, class: "light" })),
      element("pattern", { id: `pattern-${name}`, width: 14, height: 14, patternUnits: "userSpaceOnUse" },
        element(shape, { ...attributes, class: `ink ${name}` })),
    );
  }
  return made;
}

/** A petal of length LENGTH along the x axis, no wider than `count` petals leave room for. */
function petalPath(count) {
  const half = LENGTH * Math.min(0.42, Math.tan(Math.PI / Math.max(count, 3)) * 0.66);
  return `M0 0C${LENGTH * 0.28} ${-half * 0.75} ${LENGTH * 0.5} ${-half * 1.35} ${LENGTH * 0.8} ${-half * 0.82}` +
    `C${LENGTH * 0.93} ${-half * 0.58} ${LENGTH} ${-half * 0.24} ${LENGTH} 0` +
    `C${LENGTH} ${half * 0.24} ${LENGTH * 0.93} ${half * 0.58} ${LENGTH * 0.8} ${half * 0.82}` +
    `C${LENGTH * 0.5} ${half * 1.35} ${LENGTH * 0.28} ${half * 0.75} 0 0Z`;
}

/** The labels, most probable first. (An object's own order puts a label such as "1" first.) */
export const ranked = (probabilities) =>
  Object.keys(probabilities).sort((a, b) => probabilities[b] - probabilities[a]);

/**
 * Draw one flower. A `named` one is an image with a text alternative, has a stem, and writes each
 * label beside its petal; without names it is a small decoration, whose label stands beside it.
 */
export function flower(labels, probabilities, { named = false } = {}) {
  const shown = [...labels].sort((a, b) => a.localeCompare(b, "ko"));
  const most = 12; // more petals than this could not be told apart
  if (shown.length > most) shown.splice(0, shown.length, ...ranked(probabilities ?? {}).slice(0, most));
  const path = petalPath(shown.length);
  const petals = element("g"), outlines = element("g"), names = element("g");
  shown.forEach((label, index) => {
    const name = feeling(label, labels), probability = probabilities?.[label] ?? 0;
    // A gap at the bottom leaves the stem free; the first label stands at the top.
    const angle = 90 + (360 / shown.length) * (index + 0.5 + Math.floor(shown.length / 2));
    const placed = `rotate(${angle}) translate(${CORE - 4} 0)`;
    outlines.append(element("path", { d: path, transform: placed, class: `outline ${name}` }));
    const petal = element("g", { class: "petal" },
      element("path", { d: path, fill: `url(#petal-${name})`, class: `edge ${name}` }));
    if (named) petal.append(element("path", { d: path, fill: `url(#pattern-${name})` }));
    petal.style.setProperty("--size", Math.sqrt(probability)); // so the area is the probability
    petals.append(element("g", { transform: placed }, petal));
    const radians = (angle * Math.PI) / 180, distance = LENGTH + CORE + 28;
    const text = element("text", {
      x: (Math.cos(radians) * distance).toFixed(1), y: (Math.sin(radians) * distance).toFixed(1),
      class: probability > 0 && label === ranked(probabilities)[0] ? "name first" : "name",
    });
    text.append(label);
    if (probabilities) {
      const share = element("tspan", { x: text.getAttribute("x"), dy: "1.25em", class: "share" });
      share.append(percent(probability));
      text.append(share);
    }
    names.append(text);
  });
  const size = LENGTH + CORE;
  const box = named ? [-200, -178, 400, 392] : [-size, -size, 2 * size, 2 * size];
  const made = element("svg", { viewBox: box.join(" "), class: probabilities ? "flower open" : "flower" });
  const core = element("g", { class: "core" }, element("circle", { r: CORE }));
  for (let dot = 0; dot < 7; dot++) {
    const turn = (dot * 2 * Math.PI) / 6, reach = dot < 6 ? CORE * 0.58 : 0;
    core.append(element("circle", { cx: (Math.cos(turn) * reach).toFixed(1), cy: (Math.sin(turn) * reach).toFixed(1), r: 2.6, class: "pollen" }));
  }
  if (named) {
    made.append(element("path", { class: "stem", d: "M0 0C4 70 -6 140 1 210" }),
      element("path", { class: "leaf", d: "M-1 186C2 152 22 134 44 130C46 158 30 178 -1 186Z" }),
      element("path", { class: "leaf", d: "M-1 200C-6 172 -24 160 -42 158C-42 180 -26 196 -1 200Z" }));
  }
  made.append(outlines, petals, core);
  if (named) {
    made.append(names);
    made.setAttribute("role", "img");
    made.setAttribute("aria-label", probabilities
      ? `꽃: ${ranked(probabilities).map((label) => `${label} ${percent(probabilities[label])}`).join(", ")}`
      : "아직 피지 않은 꽃");
  } else made.setAttribute("aria-hidden", "true");
  return made;
}
