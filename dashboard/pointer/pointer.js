// A place in an image: click, or the arrow keys. The server is notified when the reader pauses.

const STEP = 4; // pixels an arrow key moves the patch
const PAUSE = 250; // milliseconds
const shown = new WeakMap();

export default function (component) {
  const { data, parentElement: root, setTriggerValue } = component;
  const pointer = shown.get(root) ?? build(root);
  shown.set(root, pointer);
  pointer.send = (place) => setTriggerValue("placed", place);
  load(pointer, data);
  return () => shown.delete(root);
}

function build(root) {
  const field = root.querySelector(".field");
  const pointer = { field, canvas: root.querySelector("canvas"), words: root.querySelector(".words") };
  field.addEventListener("click", (event) => event.detail && click(pointer, event));
  field.addEventListener("keydown", (event) => walk(pointer, event));
  return pointer;
}

async function load(pointer, bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const start = 8 + view.getUint32(0, true);
  const head = JSON.parse(new TextDecoder().decode(bytes.subarray(8, start)));
  const part = bytes.slice(start + head.image.offset, start + head.image.offset + head.image.length);
  pointer.turn = (pointer.turn ?? 0) + 1;
  const turn = pointer.turn;
  const image = await createImageBitmap(new Blob([part], { type: "image/webp" }));
  if (turn !== pointer.turn) return;
  Object.assign(pointer, { image, size: head.size, x: head.x, y: head.y });
  paint(pointer);
}

function click(pointer, event) {
  const frame = pointer.canvas.getBoundingClientRect();
  const at = (offset, length, side) => Math.round((offset / length) * side - pointer.size / 2);
  put(pointer, at(event.clientX - frame.left, frame.width, pointer.image.width), at(event.clientY - frame.top, frame.height, pointer.image.height), 0);
}

function walk(pointer, event) {
  const step = { ArrowUp: [0, -STEP], ArrowDown: [0, STEP], ArrowLeft: [-STEP, 0], ArrowRight: [STEP, 0] }[event.key];
  if (!step) return;
  event.preventDefault();
  event.stopPropagation();
  put(pointer, pointer.x + step[0], pointer.y + step[1], PAUSE);
}

function put(pointer, x, y, pause) {
  const inside = (value, side) => Math.min(side - pointer.size, Math.max(0, value));
  Object.assign(pointer, { x: inside(x, pointer.image.width), y: inside(y, pointer.image.height) });
  paint(pointer);
  clearTimeout(pointer.timer);
  pointer.timer = setTimeout(() => pointer.send([pointer.x, pointer.y]), pause);
}

function paint(pointer) {
  const { canvas, image, size, x, y } = pointer;
  const scale = Math.max(1, Math.round(576 / image.width));
  Object.assign(canvas, { width: image.width * scale, height: image.height * scale });
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.drawImage(image, 0, 0, canvas.width, canvas.height);
  if (size) {
    for (const [style, width] of [["#000", 8], ["#00e5ff", 4]]) {
      context.strokeStyle = style;
      context.lineWidth = width;
      context.strokeRect(x * scale, y * scale, size * scale, size * scale);
    }
  }
  const words = size ? `Patch at x ${x}, y ${y}. Click elsewhere, or move it with the arrow keys.` : "No patch.";
  pointer.words.textContent = words;
  pointer.field.setAttribute("aria-label", words);
}
