// Tiles: an image, its map above the threshold, and its box, all painted here.
// The data arrives once, as one block of bytes; a step of a slider sends no message. What a slider
// was left at is sent as `settings`, and what was opened as `opened`; `sheet.js` makes the files.

const COLUMNS_IN_ATLAS = 8;
const shown = new WeakMap();

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const gallery = shown.get(root) ?? build(root);
  shown.set(root, gallery);
  gallery.open = (key) => setTriggerValue("opened", key);
  gallery.remember = (settings) => setTriggerValue("settings", settings);
  const id = fingerprint(data);
  gallery.given = unpack(data);
  if (gallery.id !== id) {
    gallery.id = id;
    gallery.sent = null;
    load(gallery, gallery.given);
  } else if (gallery.head) settle(gallery, gallery.given);
  return () => shown.delete(root);
}

// The packer's checksum, and the length without the header: that holds the settings, whose text is
// longer for 0.51 than for 0.5, and controls that are made anew lose the focus.
function fingerprint(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return `${bytes.byteLength - view.getUint32(0, true)}:${view.getUint32(4, true)}`;
}

function unpack(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + view.getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  head.blob = (part) => bytes.slice(start + part.offset, start + part.offset + part.length);
  return head;
}

function build(root) {
  const find = (name) => root.querySelector(name);
  const gallery = { controls: find(".controls"), status: find(".status"), list: find(".tiles"), bar: find(".bar"), changes: 0 };
  gallery.list.addEventListener("keydown", (event) => move(gallery, event));
  return gallery;
}

// The same tiles with settings from the address. Those that were set here are on their way to the
// server, and older ones that arrive meanwhile, or late, are not taken: changes are counted.
function settle(gallery, { settings, remembers, steps, change = 0 }) {
  if (!remembers || steps || change < gallery.changes) return;
  gallery.changes = change;
  const [given, mine] = [asText(settings), asText(gallery.settings)];
  if (gallery.sent === given) gallery.sent = null;
  if (gallery.sent || given === mine) return;
  gallery.settings = { ...settings };
  controls(gallery);
  paint(gallery);
}

function asText({ threshold, opacity, colours, box }) {
  return JSON.stringify([Number(threshold).toFixed(2), Number(opacity).toFixed(2), colours, Boolean(box)]);
}

async function load(gallery, head) {
  const id = gallery.id;
  const [w, h] = head.side;
  const atlas = await createImageBitmap(new Blob([head.blob(head.atlas)], { type: "image/webp" }));
  if (gallery.id !== id) return; // newer data came while this was decoded
  const { settings: given, change = 0 } = gallery.given; // newer than the head's, where they came meanwhile
  const settings = head.steps ? kept(gallery, head) : { ...given };
  Object.assign(gallery, { head, w, h, settings, changes: change, pictures: cut(atlas, w, h, head.pictures) });
  const masks = head.masks ? unpackBits(head.blob(head.masks), head.tiles.length, w * h) : null;
  gallery.masks = head.iou ? masks : null;
  gallery.outlines = masks ? masks.map((mask, i) => outline(mask, head.tiles[i].box, w)) : [];
  gallery.maps = head.maps.map((map) => ({ ...map, values: numbers(head.blob(map), map.bits) }));
  gallery.pixels = new Map();
  layOut(gallery);
  controls(gallery);
  paint(gallery);
}

// New steps: a reader on the last step moves to the newest, others stay.
function kept(gallery, head) {
  const { head: before, settings } = gallery;
  if (!before) return { ...head.settings };
  const last = settings.map === before.maps.length - 1;
  return { ...settings, map: last ? head.maps.length - 1 : Math.min(settings.map, head.maps.length - 1) };
}

// Each picture of the atlas, in colour and in grey: under a map the image loses its colours, so
// that every colour seen is the map's.
function cut(atlas, w, h, count) {
  const canvas = Object.assign(document.createElement("canvas"), { width: atlas.width, height: atlas.height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(atlas, 0, 0);
  return Array.from({ length: count }, (_, i) => {
    const [x, y] = [(i % COLUMNS_IN_ATLAS) * w, Math.floor(i / COLUMNS_IN_ATLAS) * h];
    const colour = context.getImageData(x, y, w, h);
    const grey = new Uint8Array(w * h);
    for (let k = 0; k < grey.length; k++) {
      const [r, g, b] = [colour.data[4 * k], colour.data[4 * k + 1], colour.data[4 * k + 2]];
      grey[k] = 0.2126 * r + 0.7152 * g + 0.0722 * b;
    }
    return { colour, grey };
  });
}

// The pixels at the edge of a mask, null where the mask is its box: then the box is drawn.
function outline(mask, box, w) {
  const area = box ? (box[2] - box[0]) * (box[3] - box[1]) : 0;
  if (!box || mask.reduce((sum, value) => sum + value, 0) === area) return null;
  const edge = [];
  for (let i = 0; i < mask.length; i++) {
    if (!mask[i]) continue;
    const x = i % w;
    if (x === 0 || x === w - 1 || !mask[i - 1] || !mask[i + 1] || !mask[i - w] || !mask[i + w]) edge.push(i);
  }
  return edge;
}

function numbers(bytes, bits) {
  return bits === 16 ? new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.byteLength / 2) : bytes;
}

function unpackBits(bytes, n, size) {
  const masks = [];
  for (let i = 0; i < n; i++) {
    const mask = new Uint8Array(size);
    for (let j = 0, at = i * size; j < size; j++, at++) mask[j] = (bytes[at >> 3] >> (7 - (at & 7))) & 1;
    masks.push(mask);
  }
  return masks;
}

function layOut(gallery) {
  const { head, list, w, h } = gallery;
  list.setAttribute("aria-label", head.label);
  list.style.setProperty("--tile", `${head.tile}rem`);
  list.classList.toggle("pairs", head.pairs);
  list.style.gridTemplateColumns = head.columns ? `repeat(${head.columns}, minmax(${head.tile}rem, 1fr))` : "";
  list.classList.toggle("wide", head.columns > 0);
  list.classList.toggle("coarse", Math.max(w, h) < 64); // few pixels are better seen as such
  gallery.tiles = head.tiles.map((tile, place) => {
    const button = element("button", "tile");
    button.type = "button";
    button.dataset.key = tile.key;
    button.addEventListener("click", () => (head.opens ? gallery.open(tile.key) : enlargeTile(button)));
    if (!head.opens) button.setAttribute("aria-expanded", "false");
    const canvas = element("canvas");
    Object.assign(canvas, { width: w, height: h });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", tile.alt); // its numbers follow once they are painted
    canvas.style.aspectRatio = `${w} / ${h}`;
    const frame = element("span", "frame");
    frame.append(canvas, ...(tile.box && !gallery.outlines[place] ? [boxed(tile.box, w, h)] : []));
    const title = element("span", "title", tile.title.replace(/([_.])/g, "$1\u200b")); // may break there
    const lines = tile.lines.map((text) => element("span", "line", text));
    const [score, iou] = [element("span", "line score"), element("span", "line iou")];
    button.append(frame, title, ...lines, ...(head.maps[0]?.words.length ? [score] : []), ...(gallery.masks ? [iou] : []));
    const item = element("li");
    item.append(button);
    const context = canvas.getContext("2d");
    return { ...tile, place, item, canvas, score, iou, context, target: context.createImageData(w, h) };
  });
  list.replaceChildren(...gallery.tiles.map((tile) => tile.item));
}

// A tile that leads nowhere is shown large, and small again.
function enlargeTile(button) {
  const large = button.parentElement.classList.toggle("large");
  button.setAttribute("aria-expanded", String(large));
}

function element(name, kind = "", text = "") {
  const made = document.createElement(name);
  made.className = kind;
  made.textContent = text; // never as HTML: titles carry the names of runs
  return made;
}

function boxed([x0, y0, x1, y1], w, h) {
  const box = element("span", "box");
  const share = (value, side) => `${(100 * value) / side}%`;
  Object.assign(box.style, { left: share(x0, w), top: share(y0, h), width: share(x1 - x0, w), height: share(y1 - y0, h) });
  return box;
}

function controls(gallery) {
  const { head, settings } = gallery;
  gallery.controls.hidden = !head.controls && !head.title;
  const changed = (name, value) => {
    settings[name] = value;
    cancelAnimationFrame(gallery.frame);
    gallery.frame = requestAnimationFrame(() => paint(gallery));
  };
  const map = head.steps ? stepper(gallery, changed) : choice("Map", head.maps.map((m, i) => [i, m.label]), settings.map, (value) => {
    settings.threshold = head.maps[Number(value)].threshold;
    controls(gallery);
    changed("map", Number(value));
  });
  const set = head.controls ? [
    ...(head.maps.length > 1 ? [map] : []),
    slider("Threshold", settings.threshold, (value) => changed("threshold", value)),
    slider("Opacity", settings.opacity, (value) => changed("opacity", value)),
    choice("Colours", Object.keys(head.palettes).map((name) => [name, name]), settings.colours, (value) => changed("colours", value)),
    tick("Outline", settings.box, (value) => changed("box", value)),
  ] : [];
  gallery.controls.replaceChildren(...set, ...(head.title ? [saving(gallery)] : []));
  gallery.controls.onchange = () => {
    if (!head.remembers || head.steps) return;
    gallery.sent = asText(settings);
    gallery.changes += 1;
    gallery.remember({ change: gallery.changes, tau: Number(settings.threshold).toFixed(2), opacity: Number(settings.opacity).toFixed(2), colours: settings.colours, box: settings.box ? "1" : "0" });
  };
}

function saving(gallery) {
  const group = element("span", "saving", "Save as ");
  for (const kind of ["png", "svg", "pdf"]) {
    const button = element("button", "", kind.toUpperCase());
    button.type = "button";
    button.setAttribute("aria-label", `Save these tiles as ${kind.toUpperCase()}`);
    button.addEventListener("click", () => saveSheet(onScreen(gallery), kind, gallery.head.title));
    group.append(button);
  }
  return group;
}

// What is on screen, for a file: each tile as it is painted, its words, and the settings.
function onScreen(gallery) {
  const { head, settings, tiles, w, h } = gallery;
  const map = head.maps[settings.map];
  const first = tiles[0]?.item.offsetTop;
  const parts = [head.maps.length > 1 || head.controls ? `map: ${map.label}` : "", head.controls ? `threshold ${Number(settings.threshold).toFixed(2)}, opacity ${Number(settings.opacity).toFixed(2)}` : "", `colours: ${settings.colours}`];
  return sheetOf({
    title: head.title,
    notes: [parts.filter(Boolean).join(" · "), gallery.status.textContent],
    columns: Math.max(1, tiles.filter((tile) => tile.item.offsetTop === first).length),
    tile: Math.max(144, w),
    ratio: h / w,
    bar: { colours: head.palettes[settings.colours].map(hex), low: head.scale[0], high: head.scale[1] },
    tiles: tiles.map((tile) => ({
      canvas: tile.canvas,
      box: settings.box && !gallery.outlines[tile.place] ? tile.box : null,
      lines: [tile.title, ...tile.lines, tile.score.textContent, tile.iou.textContent].filter(Boolean),
    })),
  });
}

function hex(colour) {
  return `#${colour.toString(16).padStart(6, "0")}`;
}

// The layers as steps, such as the epochs of a training.
function stepper(gallery, changed) {
  const { head, settings } = gallery;
  const range = { min: 0, max: head.maps.length - 1, step: 1 };
  return slider(head.steps, settings.map, (value) => changed("map", value), range, (value) => head.maps[value].label);
}

function slider(name, value, changed, range = { min: 0, max: 1, step: 0.01 }, spoken = (value) => `${name} ${value.toFixed(2)}`) {
  const label = element("label");
  const words = element("span");
  const input = element("input");
  const say = () => {
    words.textContent = spoken(Number(input.value));
    input.setAttribute("aria-valuetext", words.textContent);
  };
  Object.assign(input, { type: "range", ...range });
  input.value = value;
  input.setAttribute("aria-label", name);
  input.addEventListener("input", () => (say(), changed(Number(input.value))));
  input.addEventListener("keydown", (event) => event.stopPropagation());
  say();
  label.append(words, input);
  return label;
}

function choice(name, options, value, changed) {
  const label = element("label", "", name);
  const select = element("select");
  for (const [key, words] of options) {
    const option = element("option", "", words);
    option.value = key;
    select.append(option);
  }
  select.value = value;
  select.addEventListener("change", () => changed(select.value));
  label.append(select);
  return label;
}

function tick(name, value, changed) {
  const label = element("label", "tick");
  const input = Object.assign(element("input"), { type: "checkbox", checked: value });
  input.addEventListener("change", () => changed(input.checked));
  label.append(input, element("span", "", name));
  return label;
}

function paint(gallery) {
  const started = performance.now();
  const { head, settings, tiles } = gallery;
  const colours = palette(head.palettes[settings.colours], settings.opacity);
  const scores = [];
  tiles.forEach((tile, i) => {
    const values = scaled(gallery, settings.map, i);
    drawTile(gallery, tile, values, colours);
    if (settings.box && gallery.outlines[i]) drawOutline(tile, gallery.outlines[i], gallery.w);
    const iou = gallery.masks ? overlap(values, gallery.masks[i], settings.threshold) : NaN;
    if (!Number.isNaN(iou)) scores.push(iou);
    tile.iou.textContent = Number.isNaN(iou) ? "IoU —" : `IoU ${iou.toFixed(3)}`;
    tile.score.textContent = gallery.maps[settings.map].words[i] ?? "";
  });
  gallery.list.classList.toggle("boxes", settings.box);
  drawBar(gallery);
  if (head.controls && gallery.masks) summarise(gallery, scores);
  clearTimeout(gallery.saying);
  gallery.saying = setTimeout(() => describe(gallery), 150); // a screen reader hears of the last step
  gallery.list.dataset.painted = String(Number(gallery.list.dataset.painted ?? 0) + 1);
  gallery.list.dataset.milliseconds = (performance.now() - started).toFixed(1);
}

// The colours from low to high, with what the ends mean.
function drawBar({ head, settings, bar }) {
  const stops = head.palettes[settings.colours].map(hex).join(", ");
  const gradient = element("span", "gradient");
  gradient.style.background = `linear-gradient(to right, ${stops})`;
  gradient.style.opacity = Math.max(0.35, settings.opacity);
  bar.replaceChildren(element("span", "", head.scale[0]), gradient, element("span", "", head.scale[1]));
}

function summarise({ head, settings, status }, scores) {
  const mean = scores.reduce((sum, value) => sum + value, 0) / scores.length;
  status.textContent = scores.length
    ? `Mean IoU of these ${scores.length} ${head.counted} at threshold ${settings.threshold.toFixed(2)}: ${mean.toFixed(3)}`
    : `None of these ${head.counted} has both a mask and a map that varies, so there is no IoU.`;
}

function describe({ masks, settings, tiles }) {
  for (const tile of tiles) {
    const overlap = masks ? `${tile.iou.textContent} at threshold ${settings.threshold.toFixed(2)}` : "";
    tile.canvas.setAttribute("aria-label", [tile.alt, tile.score.textContent, overlap].filter(Boolean).join(", "));
  }
}

// A map at the image's size, from 0 to 1; null where it has no range.
function scaled(gallery, map, i) {
  const key = `${map}:${i}`;
  if (!gallery.pixels.has(key)) {
    const { values, h, w, zero, shared, bits } = gallery.maps[map];
    const grid = values.subarray(i * h * w, (i + 1) * h * w);
    const large = enlarge(grid, h, w, gallery.h, gallery.w);
    gallery.pixels.set(key, shared ? large.map((value) => value / (2 ** bits - 1)) : stretch(large, zero));
  }
  return gallery.pixels.get(key);
}

function enlarge(grid, h, w, height, width) {
  const wide = new Float32Array(h * width);
  taps(w, width).forEach(({ low, high, share }, x) => {
    for (let y = 0; y < h; y++) wide[y * width + x] = grid[y * w + low] * (1 - share) + grid[y * w + high] * share;
  });
  const out = new Float32Array(height * width);
  taps(h, height).forEach(({ low, high, share }, y) => {
    const [top, bottom, at] = [low * width, high * width, y * width];
    for (let x = 0; x < width; x++) out[at + x] = wide[top + x] * (1 - share) + wide[bottom + x] * share;
  });
  return out;
}

// Bilinear taps with half-pixel centres, as torch's interpolate without align_corners.
function taps(from, to) {
  return Array.from({ length: to }, (_, i) => {
    const centre = Math.max(0, ((i + 0.5) * from) / to - 0.5);
    const low = Math.min(from - 1, Math.floor(centre));
    return { low, high: Math.min(from - 1, low + 1), share: centre - low };
  });
}

function stretch(values, zero) {
  let [low, high] = [zero ? 0 : Infinity, -Infinity];
  for (const value of values) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  if (!(high > low)) return null;
  for (let i = 0; i < values.length; i++) values[i] = (values[i] - low) / (high - low);
  return values;
}

function overlap(values, mask, threshold) {
  if (!values) return NaN;
  let [both, either, inside] = [0, 0, 0];
  for (let i = 0; i < mask.length; i++) {
    const hot = values[i] >= threshold ? 1 : 0;
    inside += mask[i];
    both += hot & mask[i];
    either += hot | mask[i];
  }
  return inside ? both / either : NaN;
}

// 256 colours, each channel already times the opacity, and what is left of 256 greys beside them.
function palette(anchors, opacity) {
  const part = (i, shift) => {
    const place = (i / 255) * (anchors.length - 1);
    const low = Math.min(anchors.length - 2, Math.floor(place));
    const [a, b] = [anchors[low], anchors[low + 1]].map((c) => (c >> shift) & 255);
    return opacity * (a + (b - a) * (place - low));
  };
  const channel = (shift) => Float32Array.from({ length: 256 }, (_, i) => part(i, shift));
  return { red: channel(16), green: channel(8), blue: channel(0), left: 1 - opacity };
}

// At the image's own size; the browser enlarges it.
function drawTile({ pictures, settings }, { context, image, target }, values, { red, green, blue, left }) {
  const { colour, grey } = pictures[image];
  if (!values) return context.putImageData(colour, 0, 0);
  const pixels = new Uint32Array(target.data.buffer);
  for (let i = 0; i < pixels.length; i++) {
    const base = grey[i];
    if (values[i] < settings.threshold) {
      pixels[i] = 0xff000000 | (base << 16) | (base << 8) | base;
    } else {
      const at = (values[i] * 255) | 0;
      const rest = base * left;
      pixels[i] = 0xff000000 | ((blue[at] + rest) << 16) | ((green[at] + rest) << 8) | (red[at] + rest);
    }
  }
  return context.putImageData(target, 0, 0);
}

function drawOutline({ context }, edge, w) {
  for (const [colour, grow] of [["#000000", 1], ["#00e5ff", 0]]) {
    context.fillStyle = colour;
    for (const i of edge) context.fillRect((i % w) - grow / 2, Math.floor(i / w) - grow / 2, 1 + grow, 1 + grow);
  }
}

function move(gallery, event) {
  if (!gallery.head?.arrows) return;
  const buttons = gallery.tiles.map((tile) => tile.item.firstChild);
  const at = buttons.indexOf(event.target.closest("button"));
  const across = buttons.filter((button) => button.offsetTop === buttons[0].offsetTop).length;
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (at < 0 || !step) return;
  event.preventDefault();
  event.stopPropagation();
  buttons[Math.min(buttons.length - 1, Math.max(0, at + step))].focus();
}
