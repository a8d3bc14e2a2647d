// /openapi.json → one section a path: what to send, what comes back, and a curl line.
// Text goes in as text nodes only.

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

function resolve(schema, document_) {
  if (!schema || !schema.$ref) return schema || {};
  return schema.$ref
    .slice(2)
    .split("/")
    .reduce((inside, key) => inside[key], document_);
}

function typeOf(schema, document_) {
  if (schema.anyOf) return schema.anyOf.map((each) => typeOf(each, document_)).join(" or ");
  const inner = resolve(schema, document_);
  if (inner.type === "array") return `list of ${typeOf(inner.items, document_)}`;
  if (inner.type === "object" && inner.additionalProperties)
    return `object of ${typeOf(inner.additionalProperties, document_)}`;
  return inner.type || "any";
}

// The rows of a table: nested objects follow their field, with its name in front.
function rows(schema, document_, before = "") {
  const inner = resolve(schema, document_);
  return Object.entries(inner.properties || {}).flatMap(([name, field]) => {
    const optional = (inner.required || []).includes(name) ? "" : " (optional)";
    const row = element(
      "tr",
      element("td", element("code", before + name)),
      element("td", typeOf(field, document_) + optional),
      element("td", field.description || resolve(field, document_).description || ""),
    );
    const items = resolve(field, document_).items;
    const below = items ? rows(items, document_, `${before}${name}[].`) : [];
    const object = resolve(field, document_);
    const inside = object.properties ? rows(object, document_, `${before}${name}.`) : [];
    return [row, ...below, ...inside];
  });
}

function fields(title, schema, document_) {
  const heads = ["field", "type", "meaning"].map((head) => {
    const cell = element("th", head);
    cell.scope = "col";
    return cell;
  });
  const table = element(
    "table",
    element("caption", title),
    element("thead", element("tr", ...heads)),
    element("tbody", ...rows(schema, document_)),
  );
  const scrolled = element("div", table);
  scrolled.className = "fields";
  scrolled.tabIndex = 0;
  return scrolled;
}

function example(schema) {
  const texts = "texts" in (schema.properties || {});
  return JSON.stringify(texts ? { texts: ["오늘 합격했어!"] } : { text: "오늘 합격했어!" });
}

function section(path, method, operation, document_) {
  const parts = [element("h2", `${method.toUpperCase()} ${path}`)];
  parts.push(element("p", operation.description || operation.summary || ""));
  const asked = operation.requestBody?.content["application/json"].schema;
  const data = asked ? ` \\\n  -H 'Content-Type: application/json' -d '${example(asked)}'` : "";
  parts.push(element("pre", element("code", `curl ${location.origin}${path}${data}`)));
  if (asked) parts.push(fields("you send", asked, document_));
  for (const [status, response] of Object.entries(operation.responses)) {
    const schema = response.content?.["application/json"]?.schema;
    if (schema && rows(schema, document_).length)
      parts.push(fields(`status ${status}`, schema, document_));
  }
  return element("section", ...parts);
}

async function show() {
  const main = document.getElementById("paths");
  try {
    const document_ = await (await fetch("/openapi.json")).json();
    const sections = Object.entries(document_.paths).flatMap(([path, operations]) =>
      Object.entries(operations)
        .filter(([method]) => method !== "head")
        .map(([method, operation]) => section(path, method, operation, document_)),
    );
    main.replaceChildren(...sections);
  } catch {
    main.replaceChildren(element("p", "The service does not answer; is it running?"));
  }
}

show();
