// The attention of one place, in every head: hover, click, or walk with the arrow keys.
// All rows are held here as bytes, each divided by its greatest value; no request to the server.

const shown = new WeakMap();
const MODES = [
  ["place", "The place under the pointer"],
  ["inside", "Mean of the rows in the box"],
  ["outside", "Mean of the rows outside the box"],
];

export default function (component) {
  const { data, parentElement: root } = component;
  const picker = shown.get(root) ?? build(root);
  shown.set(root, picker);
  picker.link ??= follow(picker);
  const id = new DataView(data.buffer, data.byteOffset, 8).getUint32(4, true);
  if (picker.id !== id) {
    picker.id = id;
    load(picker, data);
  }
  return () => {
    window.removeEventListener(LINK, picker.link);
    shown.delete(root);
  };
}

// Pickers that are linked move together, each on its own grid.
const LINK = "attnviz-place";

function follow(picker) {
  const move = ({ detail }) => {
    if (detail.from === picker || !picker.head?.linked || detail.linked !== picker.head.linked) return;
    const [h, w] = picker.head.query;
    Object.assign(picker, { mode: detail.mode, pinned: detail.pinned, row: clamp(Math.floor(detail.y * h), h), column: clamp(Math.floor(detail.x * w), w) });
    if (picker.mode !== "place" && !picker.head[picker.mode].length) picker.mode = "place";
    paint(picker);
  };
  window.addEventListener(LINK, move);
  return move;
}

function lead(picker) {
  const { linked, query } = picker.head;
  if (!linked) return;
  const detail = { from: picker, linked, mode: picker.mode, pinned: picker.pinned, y: (picker.row + 0.5) / query[0], x: (picker.column + 0.5) / query[1] };
  window.dispatchEvent(new CustomEvent(LINK, { detail }));
}

function build(root) {
  const find = (name) => root.querySelector(name);
  const picker = {
    modes: find(".modes"), status: find(".status"), heads: find(".heads"),
    field: find(".field"), canvas: find(".field canvas"), caption: find(".place figcaption"),
  };
  picker.field.addEventListener("pointermove", (event) => picker.pinned || point(picker, event));
  picker.field.addEventListener("click", (event) => {
    if (event.detail === 0) return; // Enter on the button: the place stays where the keys put it
    picker.pinned = !picker.pinned;
    point(picker, event);
  });
  picker.field.addEventListener("keydown", (event) => walk(picker, event));
  return picker;
}

async function load(picker, bytes) {
  const id = picker.id;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + view.getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const blob = (part) => bytes.slice(start + part.offset, start + part.offset + part.length);
  const image = await createImageBitmap(new Blob([blob(head.image)], { type: "image/webp" }));
  if (picker.id !== id) return;
  Object.assign(picker, { head, image, rows: blob(head.rows), shares: floats(blob(head.shares)), tops: floats(blob(head.tops)), row: head.place[0], column: head.place[1], mode: "place", pinned: false });
  picker.grey = greyed(image);
  picker.palette = head.palette.map((c) => [(c >> 16) & 255, (c >> 8) & 255, c & 255]);
  picker.means = { inside: mean(picker, head.inside), outside: mean(picker, head.outside) };
  layOut(picker);
  paint(picker);
}

function floats(bytes) {
  return new Float32Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 4);
}

function element(name, text = "") {
  const made = document.createElement(name);
  made.textContent = text;
  return made;
}

function layOut(picker) {
  const { head, modes, heads, canvas, image } = picker;
  Object.assign(canvas, { width: image.width * 4, height: image.height * 4 });
  modes.replaceChildren(...MODES.filter(([mode]) => mode === "place" || head[mode].length).map(([mode, words]) => {
    const button = element("button", words);
    button.type = "button";
    button.dataset.mode = mode;
    button.addEventListener("click", () => ((picker.mode = mode), paint(picker), lead(picker)));
    return button;
  }));
  picker.views = Array.from({ length: head.heads }, () => {
    const figure = element("figure");
    const view = element("canvas");
    Object.assign(view, { width: image.width * 2, height: image.height * 2 });
    view.setAttribute("role", "img");
    const words = element("figcaption");
    figure.append(view, words);
    return { figure, view, words };
  });
  heads.replaceChildren(...picker.views.map((one) => one.figure));
}

function point(picker, event) {
  const [h, w] = picker.head.query;
  const frame = picker.canvas.getBoundingClientRect();
  picker.mode = "place";
  picker.row = clamp(Math.floor(((event.clientY - frame.top) / frame.height) * h), h);
  picker.column = clamp(Math.floor(((event.clientX - frame.left) / frame.width) * w), w);
  paint(picker);
  lead(picker);
}

function walk(picker, event) {
  const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
  if (!step) return;
  event.preventDefault();
  event.stopPropagation();
  const [h, w] = picker.head.query;
  Object.assign(picker, { mode: "place", pinned: true, row: clamp(picker.row + step[0], h), column: clamp(picker.column + step[1], w) });
  paint(picker);
  lead(picker);
}

function clamp(value, size) {
  return Math.min(size - 1, Math.max(0, value));
}

// One row of one head, without the leading class and register tokens.
function row(picker, head, query) {
  const { queries, keys, prefix } = picker.head;
  const start = (head * queries + query) * keys;
  return picker.rows.subarray(start + prefix, start + keys);
}

// The mean of several rows: each is brought back to a sum of one first.
function mean(picker, queries) {
  const { heads, keys, prefix } = picker.head;
  return Array.from({ length: heads }, (_, head) => {
    const out = new Float32Array(keys - prefix);
    for (const query of queries) {
      const values = row(picker, head, query);
      const total = sum(values) || 1;
      for (let i = 0; i < out.length; i++) out[i] += values[i] / total / queries.length;
    }
    return out;
  });
}

function sum(values) {
  let total = 0;
  for (const value of values) total += value;
  return total;
}

function paint(picker) {
  const started = performance.now();
  const { head, mode } = picker;
  const query = head.prefix_q + picker.row * head.query[1] + picker.column;
  const maps = picker.views.map((_, i) => (mode === "place" ? row(picker, i, query) : picker.means[mode][i]));
  picker.top = head.shared ? maps.reduce((top, values, i) => Math.max(top, greatest(values) * (mode === "place" ? picker.tops[i * head.queries + query] : 1)), 0) : 0;
  const shares = picker.views.map((one, i) => {
    const values = head.shared && mode === "place" ? Float32Array.from(maps[i], (v) => v * picker.tops[i * head.queries + query]) : maps[i];
    const queries = mode === "place" ? [query] : head[mode];
    const share = queries.reduce((all, q) => all + picker.shares[i * head.queries + q], 0) / queries.length;
    drawHead(picker, one.view, values);
    const words = head.names[i] + (head.box ? ` · ${(100 * share).toFixed(1)} % in the box` : "");
    one.words.textContent = words;
    one.view.setAttribute("aria-label", `Attention of ${spoken(picker)}, ${words}`);
    return share;
  });
  drawPlace(picker);
  picker.caption.textContent = picker.pinned ? "Pinned: click again to let go." : "Hover, click to pin, or use the arrow keys.";
  const list = shares.map((share, i) => `${head.names[i]} ${(100 * share).toFixed(1)} %`).join(", ");
  picker.status.textContent = head.box
    ? `Of the attention of ${spoken(picker)}, this much lies in the box: ${list}. Chance: ${(100 * head.chance).toFixed(1)} %.`
    : `The attention of ${spoken(picker)}; this image has no box.`;
  picker.field.setAttribute("aria-label", `${spoken(picker)}; the arrow keys move the place`);
  for (const button of picker.modes.children) button.setAttribute("aria-pressed", String(button.dataset.mode === mode));
  picker.heads.dataset.milliseconds = (performance.now() - started).toFixed(2);
  picker.heads.dataset.painted = String(Number(picker.heads.dataset.painted ?? 0) + 1);
}

function greatest(values) {
  let top = 0;
  for (const value of values) if (value > top) top = value;
  return top;
}

function spoken(picker) {
  if (picker.mode === "inside") return "the places in the box, on average";
  if (picker.mode === "outside") return "the places outside the box, on average";
  return `the place in row ${picker.row + 1}, column ${picker.column + 1}`;
}

function greyed(image) {
  const canvas = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = canvas.getContext("2d");
  context.drawImage(image, 0, 0);
  const picture = context.getImageData(0, 0, canvas.width, canvas.height);
  for (let i = 0; i < picture.data.length; i += 4) {
    const [r, g, b] = picture.data.subarray(i, i + 3);
    picture.data.fill(0.2126 * r + 0.7152 * g + 0.0722 * b, i, i + 3);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

function drawHead(picker, view, values) {
  const [h, w] = picker.head.key;
  let top = picker.top;
  if (!top) for (const value of values) if (value > top) top = value;
  const pixels = new Uint8ClampedArray(h * w * 4);
  for (let i = 0; i < h * w; i++) {
    const place = (top ? values[i] / top : 0) * (picker.palette.length - 1);
    const low = Math.min(picker.palette.length - 2, Math.floor(place));
    for (let c = 0; c < 3; c++) {
      const [a, b] = [picker.palette[low][c], picker.palette[low + 1][c]];
      pixels[i * 4 + c] = a + (b - a) * (place - low);
    }
    pixels[i * 4 + 3] = 178;
  }
  const small = Object.assign(document.createElement("canvas"), { width: w, height: h });
  small.getContext("2d").putImageData(new ImageData(pixels, w, h), 0, 0);
  const context = view.getContext("2d");
  context.imageSmoothingEnabled = true;
  context.drawImage(picker.grey, 0, 0, view.width, view.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(small, 0, 0, view.width, view.height);
  drawBox(context, picker.head.box, view.width / picker.image.width);
  if (picker.mode === "place") drawMark(picker, context, view);
}

function drawPlace(picker) {
  const context = picker.canvas.getContext("2d");
  context.drawImage(picker.image, 0, 0, picker.canvas.width, picker.canvas.height);
  drawBox(context, picker.head.box, picker.canvas.width / picker.image.width);
  if (picker.mode === "place") drawMark(picker, context, picker.canvas);
}

function drawMark(picker, context, canvas) {
  const [h, w] = picker.head.query;
  const [high, wide] = [canvas.height / h, canvas.width / w];
  frame(context, [picker.column * wide, picker.row * high, wide, high], "#ff2fb9", 1);
}

function drawBox(context, box, scale) {
  if (!box) return;
  const [x0, y0, x1, y1] = box.map((value) => value * scale);
  frame(context, [x0, y0, x1 - x0, y1 - y0], "#00e5ff", 1.5);
}

function frame(context, rectangle, colour, width) {
  for (const [style, line] of [["#000", 4 * width], [colour, 2 * width]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    context.strokeRect(...rectangle);
  }
}
