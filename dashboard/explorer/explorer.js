// One dot per image, a histogram along each side. A drag over the dots brushes both, a drag over a
// histogram one; the number fields do the same for the keyboard. The server is told at the end.

const shown = new WeakMap();
const [LEFT, RIGHT, TOP, BOTTOM, BINS] = [56, 78, 66, 44, 40];

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const plot = shown.get(root) ?? build(root);
  shown.set(root, plot);
  plot.send = (brush) => setTriggerValue("brushed", brush);
  load(plot, data);
  return () => {
    plot.watch.disconnect();
    plot.theme.onchange = null;
    shown.delete(root);
  };
}

function build(root) {
  const canvas = root.querySelector("canvas");
  const plot = { root, canvas, fields: root.querySelector(".fields") };
  plot.watch = new ResizeObserver(() => paint(plot));
  plot.watch.observe(canvas);
  plot.theme = window.matchMedia("(prefers-color-scheme: dark)");
  plot.theme.onchange = () => setTimeout(() => paint(plot), 100);
  canvas.addEventListener("pointerdown", (event) => begin(plot, event));
  canvas.addEventListener("pointermove", (event) => drag(plot, event));
  canvas.addEventListener("pointerup", (event) => end(plot, event));
  canvas.addEventListener("pointercancel", () => (plot.from = null));
  return plot;
}

function load(plot, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + view.getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const part = ({ offset, length }) => bytes.slice(start + offset, start + offset + length);
  const floats = (one) => new Float32Array(part(one).buffer);
  Object.assign(plot, { head, x: floats(head.x), y: floats(head.y), wrong: part(head.wrong), brush: { x: head.brush[0], y: head.brush[1] } });
  plot.canvas.setAttribute("aria-label", head.label);
  layOut(plot);
  paint(plot);
}

function layOut(plot) {
  const { head, fields } = plot;
  const made = [];
  for (const [axis, name, [low, high]] of [["x", head.names[0], head.across], ["y", head.names[1], head.up]]) {
    for (const [end, words] of [[0, "from"], [1, "to"]]) {
      const label = document.createElement("label");
      label.textContent = `${name} ${words}`;
      const input = Object.assign(document.createElement("input"), { type: "number", step: "any", min: low, max: high });
      const places = decimals(low, high) + 1;
      input.value = plot.brush[axis] ? Number(plot.brush[axis][end].toFixed(places)) : "";
      input.placeholder = Number((end ? high : low).toFixed(places));
      input.addEventListener("keydown", (event) => event.stopPropagation());
      input.addEventListener("change", () => typed(plot, axis, end, input.value, [low, high]));
      label.append(input);
      made.push(label);
    }
  }
  const clear = Object.assign(document.createElement("button"), { type: "button", textContent: "Clear the brush", disabled: !plot.brush.x && !plot.brush.y });
  clear.addEventListener("click", () => tell(plot, { x: null, y: null }));
  fields.replaceChildren(...made, clear);
}

function typed(plot, axis, end, text, range) {
  const next = [...(plot.brush[axis] ?? range)];
  next[end] = text === "" ? range[end] : Number(text);
  tell(plot, { ...plot.brush, [axis]: next[0] === range[0] && next[1] === range[1] ? null : next });
}

function tell(plot, brush) {
  plot.brush = brush;
  layOut(plot);
  paint(plot);
  plot.send(brush);
}

function frame(plot) {
  const { width, height } = plot.canvas.getBoundingClientRect();
  const box = { x0: LEFT, x1: width - RIGHT, y0: TOP, y1: height - BOTTOM, width, height };
  const scale = (value, [low, high], from, to) => from + ((value - low) / (high - low)) * (to - from);
  const back = (at, [low, high], from, to) => low + (Math.min(1, Math.max(0, (at - from) / (to - from)))) * (high - low);
  return {
    ...box,
    px: (v) => scale(v, plot.head.across, box.x0, box.x1), py: (v) => scale(v, plot.head.up, box.y1, box.y0),
    vx: (at) => back(at, plot.head.across, box.x0, box.x1), vy: (at) => back(at, plot.head.up, box.y1, box.y0),
  };
}

function at(plot, event) {
  const { left, top } = plot.canvas.getBoundingClientRect();
  return [event.clientX - left, event.clientY - top];
}

function begin(plot, event) {
  const [x, y] = at(plot, event);
  const f = frame(plot);
  const kind = y < f.y0 - 4 ? "x" : x > f.x1 + 4 ? "y" : "both";
  Object.assign(plot, { from: [x, y], kind });
  plot.canvas.setPointerCapture(event.pointerId);
}

function dragged(plot, event) {
  const [x, y] = at(plot, event);
  const f = frame(plot);
  const pair = (a, b) => [Math.min(a, b), Math.max(a, b)];
  return {
    x: plot.kind === "y" ? plot.brush.x : pair(f.vx(plot.from[0]), f.vx(x)),
    y: plot.kind === "x" ? plot.brush.y : pair(f.vy(plot.from[1]), f.vy(y)),
  };
}

function drag(plot, event) {
  if (!plot.from) return;
  plot.drawn = dragged(plot, event);
  paint(plot, plot.drawn);
}

function end(plot, event) {
  if (!plot.from) return;
  const [x, y] = at(plot, event);
  const moved = Math.hypot(x - plot.from[0], y - plot.from[1]) > 4;
  const brush = moved ? dragged(plot, event) : { x: plot.kind === "y" ? plot.brush.x : null, y: plot.kind === "x" ? plot.brush.y : null };
  plot.from = null;
  tell(plot, brush);
}

function paint(plot, brush = plot.brush) {
  if (!plot.head) return;
  const { canvas, x, y, wrong, head } = plot;
  const f = frame(plot);
  if (!f.width) return;
  const ratio = window.devicePixelRatio || 1;
  Object.assign(canvas, { width: f.width * ratio, height: f.height * ratio });
  const c = canvas.getContext("2d");
  c.scale(ratio, ratio);
  const style = getComputedStyle(canvas);
  const [ink, mark] = [style.color, style.getPropertyValue("--st-primary-color").trim() || "#1f5fbf"];
  const inside = (i) => (!brush.x || (x[i] >= brush.x[0] && x[i] <= brush.x[1])) && (!brush.y || (y[i] >= brush.y[0] && y[i] <= brush.y[1]));
  axes(c, f, head, ink);
  const size = Math.max(1.5, Math.min(4, 60 / Math.sqrt(x.length)));
  let count = 0;
  for (let i = 0; i < x.length; i++) {
    const chosen = inside(i);
    count += chosen;
    c.globalAlpha = chosen ? 0.8 : 0.18;
    c.fillStyle = c.strokeStyle = mark;
    const [px, py] = [f.px(x[i]), f.py(y[i])];
    c.beginPath();
    if (wrong[i]) {
      c.strokeStyle = ink;
      c.lineWidth = 1.6;
      c.moveTo(px - size, py - size); c.lineTo(px + size, py + size); c.moveTo(px + size, py - size); c.lineTo(px - size, py + size);
      c.stroke();
    } else {
      c.arc(px, py, size, 0, 7);
      c.fill();
    }
  }
  c.globalAlpha = 1;
  histogram(c, x, head.across, inside, mark, (bin, n) => [f.x0 + (bin * (f.x1 - f.x0)) / BINS, f.y0 - 8 - n * (TOP - 30), (f.x1 - f.x0) / BINS - 1, n * (TOP - 30)]);
  histogram(c, y, head.up, inside, mark, (bin, n) => [f.x1 + 8, f.y1 - ((bin + 1) * (f.y1 - f.y0)) / BINS, n * (RIGHT - 24), (f.y1 - f.y0) / BINS - 1]);
  if (brush.x || brush.y) {
    const within = (value, low, high) => Math.min(high, Math.max(low, value));
    const [x0, x1] = brush.x ? brush.x.map((v) => within(f.px(v), f.x0, f.x1)) : [f.x0, f.x1];
    const [y1, y0] = brush.y ? brush.y.map((v) => within(f.py(v), f.y0, f.y1)) : [f.y1, f.y0];
    c.strokeStyle = ink;
    c.lineWidth = 1.5;
    c.strokeRect(x0, y0, x1 - x0, y1 - y0);
  }
  c.fillStyle = ink;
  c.font = `13px ${style.fontFamily}`;
  c.textAlign = "left";
  const words = `${count} of ${x.length} images · ● answered correctly  × wrongly`;
  const room = canvas.clientWidth - c.measureText(words).width;
  c.fillText(words, Math.max(0, Math.min(f.x0, room)), 14, canvas.clientWidth);
  canvas.dataset.chosen = String(count);
}

// Decimals that tell the five numbers along an axis apart.
function decimals(low, high) {
  const step = Math.abs(high - low) / 4;
  return step > 0 ? Math.min(12, Math.max(2, 1 - Math.floor(Math.log10(step)))) : 2;
}

function axes(c, f, head, ink) {
  c.strokeStyle = c.fillStyle = ink;
  c.font = `12px ${getComputedStyle(c.canvas).fontFamily}`;
  c.globalAlpha = 0.35;
  c.lineWidth = 1;
  c.strokeRect(f.x0, f.y0, f.x1 - f.x0, f.y1 - f.y0);
  c.globalAlpha = 1;
  const [across, up] = [decimals(f.vx(f.x0), f.vx(f.x1)), decimals(f.vy(f.y1), f.vy(f.y0))];
  for (let i = 0; i <= 4; i++) {
    const [x, y] = [f.vx(f.x0 + (i * (f.x1 - f.x0)) / 4), f.vy(f.y1 - (i * (f.y1 - f.y0)) / 4)];
    c.textAlign = "center";
    c.fillText(Number(x.toFixed(across)), f.x0 + (i * (f.x1 - f.x0)) / 4, f.y1 + 16);
    c.textAlign = "right";
    c.fillText(Number(y.toFixed(up)), f.x0 - 6, f.y1 - (i * (f.y1 - f.y0)) / 4 + 4);
  }
  c.textAlign = "center";
  c.fillText(head.names[0], (f.x0 + f.x1) / 2, f.y1 + 34);
  c.save();
  c.translate(14, (f.y0 + f.y1) / 2);
  c.rotate(-Math.PI / 2);
  c.fillText(head.names[1], 0, 0);
  c.restore();
}

function histogram(c, values, [low, high], inside, mark, place) {
  const [all, chosen] = [new Float32Array(BINS), new Float32Array(BINS)];
  values.forEach((value, i) => {
    const bin = Math.min(BINS - 1, Math.max(0, Math.floor(((value - low) / (high - low)) * BINS)));
    all[bin] += 1;
    if (inside(i)) chosen[bin] += 1;
  });
  const most = Math.max(1, ...all);
  for (const [counts, alpha] of [[all, 0.25], [chosen, 0.85]]) {
    c.globalAlpha = alpha;
    c.fillStyle = mark;
    counts.forEach((n, bin) => n && c.fillRect(...place(bin, n / most)));
  }
  c.globalAlpha = 1;
}
