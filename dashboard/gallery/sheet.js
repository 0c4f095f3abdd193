// What a gallery shows, as a file: PNG, SVG or PDF. Plain functions over canvases and text, so that
// any host of the gallery can use them; nothing leaves the browser.
//
// A sheet is { width, height, items }, its items { image | text | rectangle, x, y, … } in pixels.

const SHEET_MARGIN = 16;
const SHEET_LINE = 15;

// Tiles in rows below a title, with the colour bar: `tiles` are { canvas, box, lines }, `bar` is
// { colours: ["#rrggbb", …], low, high }.
function sheetOf({ title, notes, tiles, columns, tile, ratio, bar }) {
  const [w, h] = [tile, Math.round(tile * ratio)];
  const most = Math.max(0, ...tiles.map((one) => one.lines.length));
  const across = Math.max(1, Math.min(columns, tiles.length));
  const width = Math.max(420, across * (w + 10) - 10) + 2 * SHEET_MARGIN;
  const items = [{ text: title, x: SHEET_MARGIN, y: SHEET_MARGIN + 12, size: 14, bold: true }];
  let y = SHEET_MARGIN + 12;
  for (const note of notes.filter(Boolean)) items.push({ text: note, x: SHEET_MARGIN, y: (y += SHEET_LINE + 2), size: 11 });
  if (bar) {
    y += 10;
    items.push({ image: barCanvas(bar.colours), x: SHEET_MARGIN, y, width: 160, height: 10 });
    items.push({ text: `${bar.low} to ${bar.high}`, x: SHEET_MARGIN + 168, y: y + 9, size: 11 });
    y += 12;
  }
  const top = y + 12;
  const step = h + 8 + most * SHEET_LINE + 6;
  tiles.forEach((one, i) => {
    const [x, at] = [SHEET_MARGIN + (i % across) * (w + 10), top + Math.floor(i / across) * step];
    items.push({ image: one.canvas, x, y: at, width: w, height: h });
    if (one.box) {
      const [x0, y0, x1, y1] = one.box;
      const scale = w / one.canvas.width;
      const place = { x: x + x0 * scale, y: at + y0 * scale, width: (x1 - x0) * scale, height: (y1 - y0) * scale };
      items.push({ rectangle: "#000000", line: 4, ...place }, { rectangle: "#00e5ff", line: 2, ...place });
    }
    one.lines.forEach((text, k) => items.push({ text: fitted(text, w, k === 0), x, y: at + h + 13 + k * SHEET_LINE, size: 11, bold: k === 0 }));
  });
  const height = top + Math.ceil(tiles.length / across) * step + SHEET_MARGIN;
  return { width, height, items };
}

function barCanvas(colours) {
  const canvas = Object.assign(document.createElement("canvas"), { width: 256, height: 1 });
  const context = canvas.getContext("2d");
  const gradient = context.createLinearGradient(0, 0, 256, 0);
  colours.forEach((colour, i) => gradient.addColorStop(i / (colours.length - 1), colour));
  context.fillStyle = gradient;
  context.fillRect(0, 0, 256, 1);
  return canvas;
}

function font({ size, bold }) {
  return `${bold ? "bold " : ""}${size}px Helvetica, Arial, sans-serif`;
}

// A line that fits its tile: the end is cut where it does not.
function fitted(text, width, bold) {
  const context = document.createElement("canvas").getContext("2d");
  context.font = font({ size: 11, bold });
  if (context.measureText(text).width <= width) return text;
  let kept = text;
  while (kept && context.measureText(`${kept}…`).width > width) kept = kept.slice(0, -1);
  return `${kept}…`;
}

function sheetCanvas({ width, height, items }, scale = 2) {
  const canvas = Object.assign(document.createElement("canvas"), { width: width * scale, height: height * scale });
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, width, height);
  for (const one of items) {
    if (one.image) context.drawImage(one.image, one.x, one.y, one.width, one.height);
    if (one.rectangle) {
      Object.assign(context, { strokeStyle: one.rectangle, lineWidth: one.line });
      context.strokeRect(one.x, one.y, one.width, one.height);
    }
    if (one.text) {
      Object.assign(context, { fillStyle: "#1a1d23", font: font(one) });
      context.fillText(one.text, one.x, one.y);
    }
  }
  return canvas;
}

function sheetPng(sheet) {
  return new Promise((done) => sheetCanvas(sheet).toBlob(done, "image/png"));
}

function sheetSvg({ width, height, items }) {
  const made = (name, attributes, text = "") => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, String(value));
    element.textContent = text; // never as markup
    return element;
  };
  const root = made("svg", { width, height, viewBox: `0 0 ${width} ${height}` });
  root.append(made("rect", { width, height, fill: "#ffffff" }));
  for (const one of items) {
    const place = { x: one.x, y: one.y, width: one.width, height: one.height };
    if (one.image) root.append(made("image", { ...place, preserveAspectRatio: "none", href: one.image.toDataURL("image/png") }));
    if (one.rectangle) root.append(made("rect", { ...place, fill: "none", stroke: one.rectangle, "stroke-width": one.line }));
    if (one.text) root.append(made("text", { x: one.x, y: one.y, "font-size": one.size, "font-weight": one.bold ? 700 : 400, "font-family": "Helvetica, Arial, sans-serif", fill: "#1a1d23" }, one.text));
  }
  return new Blob([new XMLSerializer().serializeToString(root)], { type: "image/svg+xml" });
}

// One page: images as they are, text as Helvetica; text beyond Latin-1 as an image.
async function sheetPdf({ width, height, items }) {
  const objects = [];
  const add = (head, body = null) => objects.push({ head, body });
  const content = [];
  const images = [];
  add("<< /Type /Catalog /Pages 2 0 R >>");
  add("<< /Type /Pages /Kids [3 0 R] /Count 1 >>");
  add(""); // the page, once its images are known
  add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica /Encoding /WinAnsiEncoding >>");
  add("<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica-Bold /Encoding /WinAnsiEncoding >>");
  add(""); // its content
  const place = async (canvas, x, y, w, h) => {
    const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    const rgb = new Uint8Array(canvas.width * canvas.height * 3);
    for (let i = 0; i < rgb.length / 3; i++) rgb.set(pixels.subarray(4 * i, 4 * i + 3), 3 * i);
    const body = await deflated(rgb);
    add(`<< /Type /XObject /Subtype /Image /Width ${canvas.width} /Height ${canvas.height} /ColorSpace /DeviceRGB /BitsPerComponent 8 /Filter /FlateDecode /Length ${body.length} >>`, body);
    images.push(objects.length);
    content.push(`q ${w} 0 0 ${h} ${x} ${height - y - h} cm /I${objects.length} Do Q`);
  };
  for (const one of items) {
    if (one.image) await place(one.image, one.x, one.y, one.width, one.height);
    if (one.rectangle) {
      const [r, g, b] = [1, 3, 5].map((at) => (parseInt(one.rectangle.slice(at, at + 2), 16) / 255).toFixed(3));
      content.push(`${r} ${g} ${b} RG ${one.line} w ${one.x} ${height - one.y - one.height} ${one.width} ${one.height} re S`);
    }
    if (one.text) {
      const plain = one.text.replaceAll("…", "...").replaceAll("–", "-");
      if ([...plain].every((c) => c.codePointAt(0) < 256)) {
        content.push(`BT /F${one.bold ? 2 : 1} ${one.size} Tf ${one.x} ${height - one.y} Td (${plain.replace(/[\\()]/g, "\\$&")}) Tj ET`);
      } else {
        const drawn = textCanvas(one);
        await place(drawn, one.x, one.y - one.size, drawn.width / 3, drawn.height / 3);
      }
    }
  }
  const stream = latin1(content.join("\n"));
  objects[5] = { head: `<< /Length ${stream.length} >>`, body: stream };
  const named = images.map((n) => `/I${n} ${n} 0 R`).join(" ");
  objects[2] = { head: `<< /Type /Page /Parent 2 0 R /MediaBox [0 0 ${width} ${height}] /Contents 6 0 R /Resources << /Font << /F1 4 0 R /F2 5 0 R >> /XObject << ${named} >> >> >>` };
  return new Blob(pdfParts(objects), { type: "application/pdf" });
}

function textCanvas(one) {
  const canvas = document.createElement("canvas");
  const context = canvas.getContext("2d");
  context.font = font({ ...one, size: one.size * 3 });
  Object.assign(canvas, { width: Math.ceil(context.measureText(one.text).width) + 2, height: one.size * 4 });
  context.fillStyle = "#ffffff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  Object.assign(context, { fillStyle: "#1a1d23", font: font({ ...one, size: one.size * 3 }) });
  context.fillText(one.text, 0, one.size * 3);
  return canvas;
}

function pdfParts(objects) {
  const parts = [latin1("%PDF-1.4\n")];
  const starts = [];
  let at = parts[0].length;
  const push = (bytes) => ((at += bytes.length), parts.push(bytes));
  objects.forEach(({ head, body }, i) => {
    starts.push(at);
    push(latin1(`${i + 1} 0 obj\n${head}\n`));
    if (body) [latin1("stream\n"), body, latin1("\nendstream\n")].forEach(push);
    push(latin1("endobj\n"));
  });
  const rows = starts.map((start) => `${String(start).padStart(10, "0")} 00000 n \n`).join("");
  const end = `xref\n0 ${objects.length + 1}\n0000000000 65535 f \n${rows}trailer\n<< /Size ${objects.length + 1} /Root 1 0 R >>\nstartxref\n${at}\n%%EOF\n`;
  parts.push(latin1(end));
  return parts;
}

function latin1(text) {
  return Uint8Array.from(text, (c) => c.charCodeAt(0) & 255);
}

async function deflated(bytes) {
  const stream = new Blob([bytes]).stream().pipeThrough(new CompressionStream("deflate"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

async function saveSheet(sheet, kind, name) {
  const blob = await { png: sheetPng, svg: sheetSvg, pdf: sheetPdf }[kind](sheet);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = `${name.replace(/[^\p{L}\p{N}._-]+/gu, "-").slice(0, 120)}.${kind}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
