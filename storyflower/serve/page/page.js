// The page: sends a diary to the service that it came from and shows what the service guesses.
//
// Texts reach the page only through textContent, and nothing is stored: the diary, the answer and
// the token live in this window alone. Where a text is cut, the service's own `text` fields are
// used: its offsets count code points, JavaScript's strings UTF-16 units.

import { feeling, flower, paints, percent, ranked } from "./flower.js";

const UNSURE = "모름";
const UNSURE_BELOW = 0.5;
const MOST_CHARACTERS = 100_000; // code points; the service takes no longer text
const PATIENCE = 120_000; // ms
const PIECES_AT_ONCE = 40;
const LEAST_CHANGE = 0.01; // of a probability; below it a word did nothing
const EXAMPLE =
  "아침에 엄마가 끓여 준 된장찌개를 먹고 마음이 따뜻해졌다. " +
  "점심에는 친구가 생일 선물로 꽃을 줘서 정말 고맙고 행복했다. " +
  "맛있는 것도 먹고 실컷 웃었더니 스트레스가 다 풀렸다.\n" +
  "저녁에는 동생이 내 말을 무시해서 조금 서운했다. " +
  "내일 면접에서 실수할까 봐 걱정된다. " +
  "자기 전에 돌아가신 할머니가 보고 싶어서 조금 울었다.";
const PROBLEMS = {
  unreachable: "서비스에 닿지 않습니다. 켜져 있는지 확인하고 다시 시도해 주세요.",
  timeout: "글이 제때 닿지 않았습니다. 다시 시도해 주세요.",
  busy: "지금은 서비스가 붐빕니다. 잠시 뒤에 다시 시도해 주세요.",
  stopping: "서비스가 멈추는 중입니다. 다시 켜진 뒤에 시도해 주세요.",
  too_large: "글이 너무 깁니다. 한 번에 10만 자까지 읽으니 나누어 보내 주세요.",
  too_long: "글이 너무 깁니다. 한 번에 10만 자까지 읽으니 나누어 보내 주세요.",
  no_text: "읽을 글이 없습니다. 오늘 있었던 일을 한 문장이라도 적어 주세요.",
  unauthorized: "토큰이 필요합니다. 아래 칸에 토큰을 넣어 주세요.",
  refused: "토큰이 맞지 않습니다. 다시 넣어 주세요.",
  internal: "서비스가 답하지 못했습니다. 다시 시도해 주세요.",
};
const BY_STATUS = { 401: "unauthorized", 413: "too_large", 502: "unreachable", 503: "busy", 504: "unreachable" };

const part = (id) => document.getElementById(id);
let labels = ["기쁨", "당황", "분노", "불안", "상처", "슬픔"];
let token = "";
let waiting = false;

class Problem extends Error {
  constructor(code, seconds = 0) {
    super(code);
    this.code = code;
    this.seconds = seconds;
  }
}

/** GET, or POST where there is a body; returns the answer or throws a Problem. */
async function ask(path, body) {
  if (!/^[!-~]*$/.test(token)) throw new Problem("refused"); // a header cannot hold it
  const sent = body && JSON.stringify(body);
  const headers = { ...(sent && { "Content-Type": "application/json" }), ...(token && { Authorization: `Bearer ${token}` }) };
  let response, answer;
  try {
    response = await fetch(path, {
      method: sent ? "POST" : "GET", headers, body: sent, cache: "no-store",
      signal: AbortSignal.timeout(PATIENCE),
    });
    answer = await response.json().catch(() => null); // a proxy's error is not JSON
  } catch {
    throw new Problem("unreachable");
  }
  if (response.ok && answer) return answer;
  const code = answer?.error?.code ?? BY_STATUS[response.status] ?? "internal";
  throw new Problem(code === "unauthorized" && token ? "refused" : code, Number(response.headers.get("Retry-After")) || 0);
}

function make(name, className, ...children) {
  const made = document.createElement(name);
  if (className) made.className = className;
  made.append(...children); // strings become text, never markup
  return made;
}

/** The most probable label; `label` itself may be 모름. */
const top = (answer) => ranked(answer.probabilities)[0];

function guess(answer) {
  const first = top(answer), name = feeling(first, labels);
  const unsure = answer.label === UNSURE;
  return make("span", `guess ${name}`,
    make("span", unsure ? "dot hollow" : "dot"),
    unsure ? UNSURE : `${first} ${percent(answer.probabilities[first])}`);
}

function showFlower(probabilities) {
  part("flower").replaceChildren(flower(labels, probabilities, { named: true }));
}

function showWhole(answer) {
  const first = top(answer), share = percent(answer.probabilities[first]);
  showFlower(answer.probabilities);
  part("answer").replaceChildren(...(answer.label === UNSURE
    ? [make("p", "verdict", make("strong", "", UNSURE)),
       make("p", "", `한 감정으로 짐작하기 어렵습니다. 가장 넓은 꽃잎은 ${first} ${share}입니다.`)]
    : [make("p", `verdict ${feeling(first, labels)}`, make("strong", "", first), " 쪽으로 짐작합니다"),
       make("p", "", `확률 ${share}. 틀릴 수 있는 짐작입니다.`)]));
}

function showPieces(pieces) {
  part("pieces").replaceChildren();
  part("story").hidden = false;
  let shown = 0;
  const show = () => {
    const next = pieces.slice(shown, shown + PIECES_AT_ONCE).map(pieceItem);
    part("pieces").append(...next);
    if (shown) next[0].querySelector("button").focus();
    shown += next.length;
    part("more").hidden = shown === pieces.length;
    part("more").textContent = `나머지 ${pieces.length - shown}문장 더 보기`;
  };
  part("more").onclick = show;
  show();
}

let pieceNumber = 0;
function pieceItem(piece) {
  const why = make("div", "why");
  why.id = `why-${++pieceNumber}`;
  why.hidden = true;
  why.setAttribute("aria-live", "polite");
  const button = make("button", "piece",
    flower(labels, piece.probabilities), make("span", "sentence", piece.text), guess(piece));
  button.type = "button";
  button.setAttribute("aria-expanded", "false");
  button.setAttribute("aria-controls", why.id);
  let known = false;
  button.addEventListener("click", async () => {
    why.hidden = !why.hidden;
    button.setAttribute("aria-expanded", String(!why.hidden));
    if (why.hidden || known) return;
    known = true;
    why.replaceChildren(make("p", "hint", "낱말을 하나씩 빼 보는 중…"));
    try {
      why.replaceChildren(...explained(piece.text, await ask("v1/explain", { text: piece.text })));
    } catch (problem) {
      if (problem.code === "no_text") { // a line such as "-"
        why.replaceChildren(make("p", "hint", "뺄 낱말이 없습니다."));
        return;
      }
      known = false; // the next tap asks again
      why.replaceChildren(make("p", "problem", wording(problem)));
      if (problem.code === "unauthorized" || problem.code === "refused") askForToken();
    }
  });
  return make("li", "", button, why);
}

/** The sentence with its words marked by strength and direction, and the same in words. */
function explained(text, answer) {
  const first = top(answer);
  const points = Array.from(text); // code points, as the offsets count
  const sentence = make("p", "marked");
  let end = 0;
  for (const word of answer.words) {
    sentence.append(points.slice(end, word.start).join(""));
    const size = Math.abs(word.change);
    const strength = size >= 0.3 ? 3 : size >= 0.1 ? 2 : size >= LEAST_CHANGE ? 1 : 0;
    sentence.append(strength
      ? make("mark", `${word.change > 0 ? "toward" : "away"} strength-${strength}`, word.text) : word.text);
    end = word.end;
  }
  sentence.append(points.slice(end).join(""));
  const moved = answer.words.filter((word) => Math.abs(word.change) >= LEAST_CHANGE)
    .sort((a, b) => Math.abs(b.change) - Math.abs(a.change)).slice(0, 5);
  const name = feeling(first, labels);
  const list = make("dl", "words");
  for (const [sign, where] of [[1, `＋ ${first} 쪽으로`], [-1, `－ ${first}에서 멀리`]]) {
    const words = moved.filter((word) => word.change * sign > 0);
    if (words.length) list.append(make("div", "", make("dt", "", where), ...words.map(movedWord)));
  }
  const shares = Object.entries(answer.probabilities).slice(0, 3)
    .map(([label, p]) => `${label} ${percent(p)}`).join(" · ");
  const box = make("div", name, make("p", "shares", shares), sentence,
    moved.length ? list : make("p", "", "어느 한 낱말을 빼도 짐작이 거의 그대로입니다. 여러 낱말이 함께 움직였습니다."),
    make("p", "hint", `낱말 하나를 뺐을 때 ${first}의 확률이 달라진 만큼입니다. 모델이 기댄 곳이지, 마음의 까닭은 아닙니다.`));
  return [box];
}

function movedWord({ text, change }) {
  return make("dd", "", make("b", "", text), ` ${Math.max(1, Math.round(Math.abs(change) * 100))}%p`);
}

function wording({ code, seconds }) {
  const text = PROBLEMS[code] ?? PROBLEMS.internal;
  return seconds && code === "busy" ? text.replace("잠시", `${seconds}초`) : text;
}

function askForToken() {
  part("token-form").hidden = false;
  part("token").focus();
}

function showProblem(problem) {
  const retry = make("button", "quiet", "다시 시도");
  retry.type = "button";
  retry.onclick = read;
  const needsToken = problem.code === "unauthorized" || problem.code === "refused";
  const again = !needsToken && !["no_text", "too_large", "too_long"].includes(problem.code);
  part("problem").replaceChildren(make("p", "", wording(problem)), ...(again ? [retry] : []));
  if (needsToken) askForToken();
}

function reset() {
  part("problem").replaceChildren();
  part("answer").replaceChildren();
  part("story").hidden = true;
  part("pieces").replaceChildren();
  showFlower(null);
}

function setWaiting(value) {
  waiting = value;
  document.body.classList.toggle("waiting", value);
  part("send").setAttribute("aria-disabled", String(value)); // not `disabled`, which loses the focus
  part("send").textContent = value ? "읽는 중…" : "꽃 피우기";
  if (value) part("answer").replaceChildren(make("p", "hint", "일기를 읽는 중입니다…"));
}

async function read() {
  if (waiting) return;
  const text = part("diary").value;
  reset();
  const refusal = !text.trim() ? "no_text" : length(text) > MOST_CHARACTERS ? "too_long" : null;
  if (refusal) {
    showProblem(new Problem(refusal));
    part("diary").focus();
    return;
  }
  setWaiting(true);
  let answer, problem;
  try {
    answer = await ask("v1/diary", { text, unsure_below: UNSURE_BELOW });
  } catch (caught) {
    problem = caught;
  }
  setWaiting(false);
  part("answer").replaceChildren();
  if (problem) return showProblem(problem);
  part("token-form").hidden = true;
  showWhole(answer);
  showPieces(answer.pieces);
  part("flower").scrollIntoView({ block: "nearest" });
}

async function askModel() {
  try {
    const model = await ask("v1/model");
    labels = model.labels;
    part("raw").hidden = model.temperature !== null;
    part("version").textContent = `StoryFlower ${model.version}`;
    if (part("story").hidden) showFlower(null);
  } catch (problem) {
    if (problem.code === "unauthorized") showProblem(problem);
  }
}

const length = (text) => Array.from(text).length; // in code points

function typed() {
  const count = length(part("diary").value);
  part("count").textContent = `${count.toLocaleString("ko")}자`;
  part("example").hidden = count > 0;
  part("clear").hidden = count === 0;
}

function setDiary(text) {
  part("diary").value = text;
  typed();
  part("diary").focus();
}

document.body.append(paints());
part("diary").addEventListener("input", typed);
part("diary").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    read();
  }
});
part("diary-form").addEventListener("submit", (event) => {
  event.preventDefault();
  read();
});
part("token-form").addEventListener("submit", async (event) => {
  event.preventDefault();
  token = part("token").value.trim();
  part("token").value = "";
  part("problem").replaceChildren();
  if (part("diary").value.trim()) return read();
  await askModel();
});
part("example").addEventListener("click", () => setDiary(EXAMPLE));
part("clear").addEventListener("click", () => {
  setDiary("");
  reset();
});
showFlower(null);
typed();
askModel();
